"""`loraretriever evaluate matrix`: the paper's table, from one job."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from infra.contract.errors import InvalidArgumentError
from orchestrator.cli import output as console
from orchestrator.cli.ci_gate import Gate
from orchestrator.cli.commands.run import submit_job
from orchestrator.cli.job_client import follow_to_report, summary_of
from orchestrator.cli.job_output import (
    check_answered,
    check_success,
    print_caveats,
    print_failures,
    print_job,
    print_locations,
)
from orchestrator.cli.options.answering import GreedyDecodingFlags, WeightingFlags
from orchestrator.cli.options.binding import Sets, with_options
from orchestrator.cli.options.datasets import DatasetOptions, SampleOptions, SubmitOptions
from orchestrator.cli.options.job import evaluation_spec
from orchestrator.cli.options.scoring import MatrixGateOptions, ScoringFlags
from orchestrator.cli.options.targets import OrchestratorTier
from orchestrator.cli.tables import headline_table
from orchestrator.evaluation.job import Report
from orchestrator.evaluation.report.matrix import Matrix, build_matrix, domain_table, matrix_strategies, render_matrix


@with_options
def matrix(
    *,
    datasets: DatasetOptions,
    retrieval: WeightingFlags,
    samples: SampleOptions,
    decoding: GreedyDecodingFlags,
    submit: SubmitOptions,
    job_id: Annotated[
        str,
        typer.Option("--job", help="Submit nothing: show the table of this job once it has ended.", show_default=False),
        Sets("job"),
    ] = "",
    output: Annotated[Path | None, typer.Option(help="Also write the table, as Markdown or (.json) as JSON.")] = None,
    scoring: ScoringFlags,
    gating: MatrixGateOptions,
    orchestrator: OrchestratorTier,
) -> None:
    """Show the paper's table for your adapters: every strategy, in and out of domain, from one job.

    The adapter trained for each dataset must be known; unless options say otherwise it has the dataset's name.
    """
    gate = gating.gate(watch=submit.watch)
    if job_id and (not datasets.is_empty or scoring.is_set):
        raise InvalidArgumentError("job", "an existing job has its data and scoring; leave the options for them out")
    if not job_id:
        specs = datasets.specs(retrieval.kind, default_by_name=True)
        spec = evaluation_spec(
            specs, matrix_strategies(), samples=samples, retrieval=retrieval, decoding=decoding, scoring=scoring
        )
        job = submit_job(spec, submit, gate, orchestrator)
        if not submit.watch:
            print_job(job, orchestrator.as_json)
            return
        console.note(f"job {job.evaluation_id}: {len(spec.strategies)} strategies, {job.total_samples} samples")
        job_id = job.evaluation_id
    _print_matrix(follow_to_report(job_id, orchestrator), output, gate, orchestrator.as_json)


def _print_matrix(report: Report, output: Path | None, gate: Gate, as_json: bool) -> None:
    summary = summary_of(report)
    print_caveats(summary)
    table = build_matrix(summary)
    if output is not None:
        _write(output, table)
    if as_json:
        console.print_json(table)
    else:
        console.results().print(headline_table(domain_table(table)))
        print_locations(report.output_uri)
    print_failures(summary)
    gate.check(summary)
    check_success(summary.facts.evaluation_id, summary.facts.state)
    check_answered(summary)


def _write(file: Path, table: Matrix) -> None:
    text = json.dumps(asdict(table), indent=2) + "\n" if file.suffix == ".json" else render_matrix(table)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidArgumentError("output", f"{file} cannot be written: {error.strerror}") from error
    console.note(f"table: {file}")
