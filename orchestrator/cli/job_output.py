"""How jobs and their reports are printed, and the exit status they end with."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from orchestrator.cli import output as console
from orchestrator.cli.ci_gate import Gate
from orchestrator.cli.job_client import summary_of
from orchestrator.cli.tables import headline_table
from orchestrator.evaluation.job import Evaluation, EvaluationState, Report
from orchestrator.evaluation.report.formatting import pluralize
from orchestrator.evaluation.report.headline_tables import headline_tables
from orchestrator.evaluation.report.markdown_report import caveats
from orchestrator.evaluation.report.output_files import REPORT_HTML_FILE, SUMMARY_MARKDOWN_FILE
from orchestrator.evaluation.report.summary import Summary
from orchestrator.evaluation.spec import EvaluationSpec

#: Names shown of a longer list: enough to recognise a job in a table on a short line.
_MAX_LISTED = 2

#: Error messages shown of failed samples; the report lists more.
_MAX_MESSAGES = 3


def print_job(job: Evaluation, as_json: bool) -> None:
    """Print the state of a job."""
    if as_json:
        console.print_json(job)
        return
    failed = f", {job.failed_samples} failed" if job.failed_samples else ""
    bad_rows = f", {job.bad_rows} rows could not be read" if job.bad_rows else ""
    error = f": {job.error}" if job.error else ""
    stalled = f": {job.stalled}" if job.stalled else ""
    out = console.results()
    out.print(f"{job.evaluation_id} {job.state}{error}{stalled}", soft_wrap=True)
    out.print(f"{job.done_samples} of {job.total_samples} samples done{failed}{bad_rows}")
    datasets, strategies = listed_datasets(job.spec), listed_strategies(job.spec)
    out.print(f"datasets: {datasets}; strategies: {strategies}; protocol: {job.spec.protocol.value}", soft_wrap=True)
    if job.state is EvaluationState.FAILED:
        retry = f"'loraretriever evaluate retry {job.evaluation_id}'"
        out.print(f"its records are kept: {retry} writes the report", soft_wrap=True)
    else:
        when = "" if job.state.ended else "will be in "
        out.print(f"records and report: {when}{job.output_uri}", soft_wrap=True)


def print_report(report: Report, gate: Gate, as_json: bool) -> None:
    """Print the headline of a report, or all its numbers.

    Exit with 1 if the job was stopped, fails the gate or has no answer at all.
    """
    summary = summary_of(report)
    if as_json:
        console.print_text(report.summary_json.rstrip("\n") + "\n")
    else:
        for table in headline_tables(summary, intervals=False):
            console.results().print(headline_table(table))
        print_locations(report.output_uri)
    print_caveats(summary)
    print_failures(summary)
    gate.check(summary)
    check_success(summary.facts.evaluation_id, summary.facts.state)
    check_answered(summary)


def print_locations(folder: str) -> None:
    """Print where the report of a job is, as text and as a page for a browser."""
    for name in (SUMMARY_MARKDOWN_FILE, REPORT_HTML_FILE):
        console.results().print(f"report: {folder}/{name}", soft_wrap=True)


def print_caveats(summary: Summary) -> None:
    """Print what limits the numbers of a report."""
    for caveat in caveats(summary):
        console.note(caveat)


def print_failures(summary: Summary) -> None:
    """Print how many samples failed and the messages of the first ones."""
    if not summary.failed_samples:
        return
    console.note(f"{summary.failed_samples:,} of {pluralize(summary.recorded_samples, 'sample')} failed:")
    messages = dict.fromkeys(failure.message for failure in summary.failures)
    for message in list(messages)[:_MAX_MESSAGES]:
        console.note(f"  {message}")


def check_answered(summary: Summary) -> None:
    """Exit with status 1 if no sample has an answer."""
    if summary.failed_samples and summary.failed_samples == summary.recorded_samples:
        console.note(f"job {summary.facts.evaluation_id} has no answer: every sample failed")
        raise typer.Exit(console.FAILED)


def check_success(job_id: str, state: str) -> None:
    """Exit with status 1 for a job that did not succeed."""
    if state != EvaluationState.SUCCEEDED:
        console.note(f"job {job_id} did not finish: {state}")
        raise typer.Exit(console.FAILED)


def listed_datasets(spec: EvaluationSpec) -> str:
    """Return the datasets of a job in words."""
    return _listed([dataset.name or dataset.uri for dataset in spec.datasets])


def listed_strategies(spec: EvaluationSpec) -> str:
    """Return the strategies of a job in words."""
    return _listed([strategy.label for strategy in spec.strategies])


def _listed(names: Sequence[str]) -> str:
    """Return all names, or the first of many and the number of the others."""
    if len(names) <= _MAX_LISTED + 1:
        return ", ".join(names)
    return f"{', '.join(names[:_MAX_LISTED])} and {len(names) - _MAX_LISTED} more"
