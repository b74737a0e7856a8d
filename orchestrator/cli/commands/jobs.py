"""`loraretriever evaluate status|list|watch|report|cancel`: jobs that have been started."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.markdown import Markdown
from rich.table import Table

from infra.contract.errors import UnavailableError
from orchestrator.cli import output as console
from orchestrator.cli.ci_gate import Gate, JobMetric, gate_of
from orchestrator.cli.connect import reach
from orchestrator.cli.options import FailOn, FailUnder, MaxFailed
from orchestrator.cli.progress import headline_table, shown
from orchestrator.cli.targets import AsJson, OrchestratorTarget, target
from orchestrator.clients.evaluation import EvaluationClient
from orchestrator.evaluation.job import Evaluation, EvaluationState, Report
from orchestrator.evaluation.report.headline_tables import headline_tables
from orchestrator.evaluation.report.markdown_report import caveats
from orchestrator.evaluation.report.output_files import (
    REPORT_HTML_FILE,
    SUMMARY_JSON_FILE,
    SUMMARY_MARKDOWN_FILE,
    read_summary,
)
from orchestrator.evaluation.report.summary import Summary
from orchestrator.evaluation.spec import EvaluationSpec
from orchestrator.evaluation.storage import read_text

MAX_NAMED = 2

T = TypeVar("T")

JobId = Annotated[str, typer.Argument(help="The job's id.")]
JobMetricOption = Annotated[
    JobMetric | None,
    typer.Option(
        "--metric",
        help="What --fail-under looks at (default: action, or exact_match where no true answer is an action).",
        show_default=False,
    ),
]


def status(
    *,
    job_id: Annotated[str | None, typer.Argument(help="The job's id; left out, all jobs are listed.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the job until it ends.")] = False,
    orchestrator_target: OrchestratorTarget = "",
    as_json: AsJson = False,
) -> None:
    """Show where a job stands, or list all jobs."""
    if job_id is None:
        list_jobs(orchestrator_target=orchestrator_target, as_json=as_json)
        return
    job = follow(job_id, orchestrator_target) if watch else called(orchestrator_target, lambda jobs: jobs.get(job_id))
    print_job(job, as_json)
    if watch:
        check_success(job_id, job.state)


def list_jobs(*, orchestrator_target: OrchestratorTarget = "", as_json: AsJson = False) -> None:
    """List all jobs, newest first."""
    jobs = called(orchestrator_target, lambda client: client.list())
    if as_json:
        console.print_json(jobs)
        return
    table = Table()
    table.add_column("job", no_wrap=True)
    for column in ("state", "done", "failed", "bad rows", "started", "datasets", "strategies", "protocol"):
        table.add_column(column)
    for job in jobs:
        done = f"{job.done_samples}/{job.total_samples}"
        failed, bad_rows = str(job.failed_samples), str(job.bad_rows)
        started = f"{job.create_time:%Y-%m-%d %H:%M}"
        table.add_row(job.evaluation_id, job.state, done, failed, bad_rows, started, *_asked(job.spec))
    console.results().print(table)


def watch(
    *,
    job_id: JobId,
    metric: JobMetricOption = None,
    fail_under: FailUnder = None,
    max_failed: MaxFailed = None,
    fail_on: FailOn = None,
    orchestrator_target: OrchestratorTarget = "",
    as_json: AsJson = False,
) -> None:
    """Follow a job until it ends, then show its headline."""
    gate = gate_of(fail_under, max_failed, fail_on, metric=metric)
    print_headline(follow_to_report(job_id, orchestrator_target), gate, as_json)


def report(
    *,
    job: Annotated[str, typer.Argument(help="A job that has ended: its id, or its folder.")],
    metric: JobMetricOption = None,
    fail_under: FailUnder = None,
    max_failed: MaxFailed = None,
    fail_on: FailOn = None,
    orchestrator_target: OrchestratorTarget = "",
    as_json: AsJson = False,
) -> None:
    """Print the report of a job that has ended: summary.md, or with --json summary.json."""
    gate = gate_of(fail_under, max_failed, fail_on, metric=metric)
    found = read_report(job) if is_folder(job) else fetch_report(job, orchestrator_target)
    if as_json:
        console.print_text(found.summary_json.rstrip("\n") + "\n")
    elif sys.stdout.isatty():
        console.results().print(Markdown(found.summary_markdown))
    else:
        console.print_text(found.summary_markdown)
    gate.check(summary_of(found))


def cancel(*, job_id: JobId, orchestrator_target: OrchestratorTarget = "", as_json: AsJson = False) -> None:
    """Stop a job: samples under way end, the others never start."""
    print_job(called(orchestrator_target, lambda client: client.cancel(job_id)), as_json)


def retry(*, job_id: JobId, orchestrator_target: OrchestratorTarget = "", as_json: AsJson = False) -> None:
    """Write the report of a job that failed anew, once the cause is gone: its records are kept until then."""
    print_job(called(orchestrator_target, lambda client: client.retry(job_id)), as_json)


def delete(
    *,
    job_ids: Annotated[list[str], typer.Argument(help="Jobs that have ended, by their ids.")],
    orchestrator_target: OrchestratorTarget = "",
    as_json: AsJson = False,
) -> None:
    """Forget jobs that have ended; the files that they wrote stay."""

    async def forget(client: EvaluationClient) -> None:
        for job_id in job_ids:
            await client.delete(job_id)
            if not as_json:
                console.note(f"forgot {job_id}")

    called(orchestrator_target, forget)
    if as_json:
        console.print_json({"deleted": job_ids})


def called(orchestrator_target: str, call: Callable[[EvaluationClient], Awaitable[T]]) -> T:
    """Return what one call of the evaluation service gives."""

    async def ask() -> T:
        async with reach(EvaluationClient, target("orchestrator", orchestrator_target)) as client:
            return await call(client)

    return asyncio.run(ask())


def follow(job_id: str, orchestrator_target: str) -> Evaluation:
    """Show a job's progress until it ends; return it as it ended."""

    async def watched(client: EvaluationClient) -> Evaluation:
        try:
            return await shown(client.watch(job_id))
        except asyncio.CancelledError:
            console.note(
                f"job {job_id} goes on; follow it with 'loraretriever evaluate watch {job_id}', "
                f"stop it with 'loraretriever evaluate cancel {job_id}'"
            )
            raise

    try:
        return called(orchestrator_target, watched)
    except UnavailableError as error:
        error.add_note(
            f"the job is kept: once the orchestrator runs again, 'loraretriever evaluate watch {job_id}' follows it on"
        )
        raise


def follow_to_report(job_id: str, orchestrator_target: str) -> Report:
    """Show a job's progress until it ends; return its report. Raises UnavailableError for a job that failed."""
    job = follow(job_id, orchestrator_target)
    if job.state is EvaluationState.FAILED:
        raise UnavailableError(f"job {job_id} failed: {job.error}")
    return fetch_report(job_id, orchestrator_target)


def fetch_report(job_id: str, orchestrator_target: str) -> Report:
    """Return the report of a job that has ended."""
    return called(orchestrator_target, lambda client: client.report(job_id))


def read_report(folder: str) -> Report:
    """Return the report in a job's folder. Raises NotFoundError, or InvalidArgumentError for what is none."""
    read_summary(folder)
    return Report(read_text(folder, SUMMARY_JSON_FILE), read_text(folder, SUMMARY_MARKDOWN_FILE), folder)


def is_folder(source: str) -> bool:
    """Whether a job is named by its folder, a path or a URI, and not by its id."""
    return Path(source).is_dir() or "/" in source


def summary_of(found: Report) -> Summary:
    """Return the numbers of a report."""
    return Summary.from_json(json.loads(found.summary_json))


def print_headline(found: Report, gate: Gate, as_json: bool) -> None:
    """Print the headline of a report, or all of its numbers; exit with 1 for a job that was stopped or is too bad."""
    summary = summary_of(found)
    if as_json:
        console.print_text(found.summary_json.rstrip("\n") + "\n")
    else:
        for each in headline_tables(summary, intervals=False):
            console.results().print(headline_table(each))
        print_places(found.output_uri)
    warn(summary)
    gate.check(summary)
    check_success(summary.facts.evaluation_id, summary.facts.state)


def print_places(folder: str) -> None:
    """Say where the report of a job is, to be read and to be browsed."""
    for name in (SUMMARY_MARKDOWN_FILE, REPORT_HTML_FILE):
        console.results().print(f"report: {folder}/{name}", soft_wrap=True)


def check_success(job_id: str, state: str) -> None:
    """Exit with status 1 for a job that has not succeeded."""
    if state != EvaluationState.SUCCEEDED:
        console.note(f"job {job_id} was not carried out to its end: {state}")
        raise typer.Exit(console.FAILED)


def warn(summary: Summary) -> None:
    """Say what a reader must know before believing the numbers."""
    for caveat in caveats(summary):
        console.note(caveat)


def print_job(job: Evaluation, as_json: bool) -> None:
    """Print where a job stands."""
    if as_json:
        console.print_json(job)
        return
    failed = f", {job.failed_samples} failed" if job.failed_samples else ""
    bad = f", {job.bad_rows} rows could not be read" if job.bad_rows else ""
    error = f": {job.error}" if job.error else ""
    stalled = f": {job.stalled}" if job.stalled else ""
    out = console.results()
    out.print(f"{job.evaluation_id} {job.state}{error}{stalled}", soft_wrap=True)
    out.print(f"{job.done_samples} of {job.total_samples} samples done{failed}{bad}")
    datasets, strategies, protocol = _asked(job.spec)
    out.print(f"datasets: {datasets}; strategies: {strategies}; protocol: {protocol}", soft_wrap=True)
    out.print(_where(job), soft_wrap=True)


def _where(job: Evaluation) -> str:
    """Return where the records and the report of a job are, or what brings them there."""
    if job.state is EvaluationState.FAILED:
        return f"its records are kept: 'loraretriever evaluate retry {job.evaluation_id}' writes the report"
    return f"records and report: {'' if job.state.ended else 'will be in '}{job.output_uri}"


def shortened(names: Sequence[str]) -> str:
    """Return names in words: all of them, or the first of many and how many more there are."""
    if len(names) <= MAX_NAMED + 1:
        return ", ".join(names)
    return f"{', '.join(names[:MAX_NAMED])} and {len(names) - MAX_NAMED} more"


def _asked(spec: EvaluationSpec) -> tuple[str, str, str]:
    """Return what a job is of: its datasets, its strategies and its protocol."""
    datasets = shortened([dataset.name or dataset.uri for dataset in spec.datasets])
    return datasets, shortened([strategy.label for strategy in spec.strategies]), spec.protocol.value
