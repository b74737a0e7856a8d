"""`loraretriever evaluate run`: submit a job and follow it to its report."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli import output as console
from orchestrator.cli.ci_gate import Gate
from orchestrator.cli.commands.score import score_files
from orchestrator.cli.job_client import follow_to_report
from orchestrator.cli.job_output import print_job, print_report
from orchestrator.cli.options.answering import DecodingFlags, RetrievalFlags, StrategiesFlags
from orchestrator.cli.options.binding import with_options
from orchestrator.cli.options.datasets import DatasetOptions, SampleOptions, SubmitOptions
from orchestrator.cli.options.job import evaluation_spec
from orchestrator.cli.options.scoring import JobGateOptions, ScoringFlags
from orchestrator.cli.options.targets import OrchestratorTier
from orchestrator.evaluation.job import Evaluation
from orchestrator.evaluation.spec import EvaluationSpec


@with_options
def run(
    *,
    datasets: DatasetOptions,
    strategies: StrategiesFlags,
    retrieval: RetrievalFlags,
    samples: SampleOptions,
    decoding: DecodingFlags,
    submit: SubmitOptions,
    show_similarities: Annotated[
        bool, typer.Option("--show-similarities", help="Print where the similarities of every sample are written.")
    ] = False,
    evaluate_only: Annotated[
        bool, typer.Option("--evaluate-only", help="Score the data, which are result files, and run nothing.")
    ] = False,
    scoring: ScoringFlags,
    gating: JobGateOptions,
    orchestrator: OrchestratorTier,
) -> None:
    """Evaluate strategies on datasets: records of every sample, and a report."""
    gate = gating.gate(watch=submit.watch)
    if evaluate_only:
        score_files(datasets.files(), gate, scoring.options(), orchestrator)
        return
    spec = evaluation_spec(
        datasets.specs(retrieval.kind),
        strategies.strategies(),
        samples=samples,
        retrieval=retrieval,
        decoding=decoding,
        scoring=scoring,
    )
    job = submit_job(spec, submit, gate, orchestrator)
    if show_similarities:
        console.note(f"similarities of every sample: records below {job.output_uri}")
    if not submit.watch:
        print_job(job, orchestrator.as_json)
        return
    console.note(f"job {job.evaluation_id}: {job.total_samples} samples")
    print_report(follow_to_report(job.evaluation_id, orchestrator), gate, orchestrator.as_json)


def submit_job(spec: EvaluationSpec, submit: SubmitOptions, gate: Gate, orchestrator: OrchestratorTier) -> Evaluation:
    """Start a job and return it. Raises InvalidArgumentError for a gate on a strategy that the job does not have."""
    gate.check_labels([strategy.label for strategy in spec.strategies])
    return orchestrator.call_evaluations(lambda client: client.create(spec, submit.request_id))
