"""`loraretriever evaluate ...`: evaluation jobs, and scoring of result files."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markdown import Markdown
from rich.table import Table

from infra.contract.errors import InvalidArgumentError, UnavailableError
from infra.contract.generation import Decoding
from infra.contract.retrieval import RetrievalOptions
from orchestrator.clients import EvaluationClient
from orchestrator.commands import console
from orchestrator.commands.ask import (
    ALL_KINDS,
    LoraType,
    MaxNewTokens,
    MinSimilarity,
    Temperature,
    TopK,
    Weigh,
    WeightingTemperature,
    kind_of,
)
from orchestrator.commands.evaluated import dataset_specs, strategies_of
from orchestrator.commands.reach import reach
from orchestrator.commands.targets import AsJson, OrchestratorTarget, target
from orchestrator.commands.watching import headline_table, shown
from orchestrator.evaluation.job import Evaluation, EvaluationState, Report
from orchestrator.evaluation.metrics.legacy import LEGACY_THRESHOLD
from orchestrator.evaluation.report import headline
from orchestrator.evaluation.result_files import FileScore, MetricName, score_file
from orchestrator.evaluation.spec import EvaluationSpec, Protocol
from orchestrator.evaluation.summary import Summary

app = typer.Typer(no_args_is_help=True, help="Run evaluation jobs, follow them, and score result files.")

JobId = Annotated[str, typer.Argument(help="The job's id.")]
Threshold = Annotated[float, typer.Option(help="Above which the legacy metric calls a step right.")]
MetricOption = Annotated[MetricName, typer.Option(help="action: type and argument right; legacy: TF-IDF cosine.")]


@app.command("run")
def run(
    *,
    data: Annotated[
        list[str] | None, typer.Argument(help="JSONL files, each FILE or NAME=FILE.", show_default=False)
    ] = None,
    test_data: Annotated[list[str] | None, typer.Option(help="The same, as the study named it.")] = None,
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            "--strategy",
            "--merge-method",
            help="base, selection, mixture, fusion, fusion-concat, oracle, ..., each with -out-of-domain to hide the "
            "dataset's own adapter; may be repeated (default: mixture).",
        ),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="The adapter trained for a dataset, as DATASET=ADAPTER; may be repeated."),
    ] = None,
    adapters_by_name: Annotated[
        bool, typer.Option("--adapters-by-name", help="Each dataset's adapter has the dataset's name.")
    ] = False,
    top_k: TopK = None,
    lora_type: LoraType = ALL_KINDS,
    num_samples: Annotated[int | None, typer.Option(help="Episodes a dataset at most (default: all).")] = None,
    protocol: Annotated[Protocol, typer.Option(help="How an episode becomes samples.")] = Protocol.STEP,
    seed: Annotated[int, typer.Option(help="Chooses the episodes when there are more.")] = 0,
    weighting: Weigh = None,
    weighting_temperature: WeightingTemperature = None,
    min_similarity: MinSimilarity = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = 0.0,
    image_root: Annotated[str, typer.Option(help="Folder that image paths may also be relative to.")] = "",
    shard_size: Annotated[int | None, typer.Option(help="Samples a shard (default: the server's).")] = None,
    request_id: Annotated[str, typer.Option(help="The same id and job again return the job that runs already.")] = "",
    watch: Annotated[bool, typer.Option(help="Show progress, and the report at the end.")] = True,
    show_similarities: Annotated[
        bool, typer.Option("--show-similarities", help="Say where the similarities of every sample are written.")
    ] = False,
    evaluate_only: Annotated[
        bool, typer.Option("--evaluate-only", help="Score the files, which hold results, and run nothing.")
    ] = False,
    threshold: Threshold = LEGACY_THRESHOLD,
    gpu_id: Annotated[str, typer.Option(help="Of no effect here: say it to 'up' or 'serve generation'.")] = "",
    orchestrator_target: OrchestratorTarget = "",
    as_json: AsJson = False,
) -> None:
    """Evaluate strategies side by side on datasets: the paper's table, for your adapters, from one command."""
    files = [*(data or []), *(test_data or [])]
    if not files:
        raise InvalidArgumentError("", "name at least one JSONL file to evaluate on")
    if gpu_id:
        console.note(
            "--gpu-id has no effect on a job: the GPU is chosen where the model runs ('up', 'serve generation')"
        )
    if evaluate_only:
        _score_files([Path(file) for file in files], list(MetricName), threshold, None, as_json)
        return
    spec = EvaluationSpec(
        datasets=dataset_specs(files, adapter or [], adapters_by_name, kind_of(lora_type)),
        strategies=strategies_of(strategy or ["mixture"]),
        protocol=protocol,
        retrieval=RetrievalOptions(
            top_k=top_k,
            kind=kind_of(lora_type),
            weighting=weighting,
            temperature=weighting_temperature,
            min_similarity=min_similarity,
        ),
        decoding=Decoding(max_new_tokens=max_new_tokens, temperature=temperature),
        max_episodes=num_samples,
        seed=seed,
        shard_size=shard_size,
        image_root=image_root,
    )

    async def start() -> Evaluation:
        async with reach(EvaluationClient, target("orchestrator", orchestrator_target)) as client:
            return await client.create(spec, request_id)

    job = asyncio.run(start())
    if show_similarities:
        console.note(f"similarities of every sample: records below {job.output_uri}")
    if not watch:
        _print_job(job, as_json)
        return
    console.note(f"job {job.evaluation_id}: {job.total_samples} samples")
    _follow_and_report(job.evaluation_id, orchestrator_target, as_json)


@app.command("score")
def score(
    *,
    files: Annotated[list[Path], typer.Argument(help="Records of a job, or result files of the study; JSONL.")],
    metric: MetricOption = MetricName.ACTION,
    threshold: Threshold = LEGACY_THRESHOLD,
    strategy: Annotated[str | None, typer.Option(help="Of records: which strategy to score, by its label.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score result files that exist, without any model or server."""
    _score_files(files, [metric], threshold, strategy, as_json)


@app.command("status")
def status(
    *,
    job_id: Annotated[str | None, typer.Argument(help="The job's id; left out, all jobs are listed.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the job until it ends.")] = False,
    orchestrator_target: OrchestratorTarget = "",
    as_json: AsJson = False,
) -> None:
    """Show where a job stands, or list all jobs."""

    async def fetch() -> list[Evaluation]:
        async with reach(EvaluationClient, target("orchestrator", orchestrator_target)) as client:
            return [await client.get(job_id)] if job_id else await client.list()

    if watch and job_id:
        _print_job(asyncio.run(_follow(job_id, orchestrator_target)), as_json)
        return
    jobs = asyncio.run(fetch())
    if job_id:
        _print_job(jobs[0], as_json)
    elif as_json:
        console.print_json(jobs)
    else:
        table = Table("job", "state", "done", "failed", "bad rows", "started")
        for job in jobs:
            done = f"{job.done_samples}/{job.total_samples}"
            failed, bad_rows = str(job.failed_samples), str(job.bad_rows)
            table.add_row(job.evaluation_id, job.state, done, failed, bad_rows, f"{job.create_time:%Y-%m-%d %H:%M}")
        console.results().print(table)


@app.command("report")
def report(*, job_id: JobId, orchestrator_target: OrchestratorTarget = "", as_json: AsJson = False) -> None:
    """Print the report of a job that has ended: summary.md, or with --json summary.json."""
    _print_report(asyncio.run(_fetch_report(job_id, orchestrator_target)), as_json)


@app.command("cancel")
def cancel(*, job_id: JobId, orchestrator_target: OrchestratorTarget = "", as_json: AsJson = False) -> None:
    """Stop a job: samples under way end, the others never start."""

    async def stop() -> Evaluation:
        async with reach(EvaluationClient, target("orchestrator", orchestrator_target)) as client:
            return await client.cancel(job_id)

    _print_job(asyncio.run(stop()), as_json)


def _follow_and_report(job_id: str, orchestrator_target: str, as_json: bool) -> None:
    job = asyncio.run(_follow(job_id, orchestrator_target))
    if job.state is EvaluationState.FAILED:
        raise UnavailableError(f"job {job_id} failed: {job.error}")
    found = asyncio.run(_fetch_report(job_id, orchestrator_target))
    if as_json:
        _print_report(found, as_json)
        return
    console.results().print(headline_table(headline(Summary.from_json(json.loads(found.summary_json)))))
    console.results().print(f"report: {found.output_uri}/summary.md", soft_wrap=True)


async def _follow(job_id: str, orchestrator_target: str) -> Evaluation:
    try:
        async with reach(EvaluationClient, target("orchestrator", orchestrator_target)) as client:
            return await shown(client.watch(job_id))
    except asyncio.CancelledError:
        console.note(
            f"job {job_id} goes on; follow it with 'loraretriever evaluate status {job_id} --watch', "
            f"stop it with 'loraretriever evaluate cancel {job_id}'"
        )
        raise


async def _fetch_report(job_id: str, orchestrator_target: str) -> Report:
    async with reach(EvaluationClient, target("orchestrator", orchestrator_target)) as client:
        return await client.report(job_id)


def _print_report(found: Report, as_json: bool) -> None:
    if as_json:
        console.print_text(found.summary_json.rstrip("\n") + "\n")
    elif sys.stdout.isatty():
        console.results().print(Markdown(found.summary_markdown))
    else:
        console.print_text(found.summary_markdown)


def _print_job(job: Evaluation, as_json: bool) -> None:
    if as_json:
        console.print_json(job)
        return
    failed = f", {job.failed_samples} failed" if job.failed_samples else ""
    bad = f", {job.bad_rows} rows could not be read" if job.bad_rows else ""
    error = f": {job.error}" if job.error else ""
    out = console.results()
    out.print(f"{job.evaluation_id} {job.state}{error}", soft_wrap=True)
    out.print(f"{job.done_samples} of {job.total_samples} samples done{failed}{bad}")
    out.print(f"records and report: {job.output_uri}", soft_wrap=True)


def _score_files(
    files: list[Path], metrics: list[MetricName], threshold: float, strategy: str | None, as_json: bool
) -> None:
    scored = [(file, score_file(file, metric, threshold, strategy=strategy)) for file in files for metric in metrics]
    if as_json:
        console.print_json([{"file": str(file), **found.to_json()} for file, found in scored])
        return
    table = Table("file", "metric", "steps right", "floor", "episodes right", "floor", "steps", "episodes", "failed")
    for file, found in scored:
        table.add_row(str(file), found.metric, *_cells(found))
    console.results().print(table)


def _cells(found: FileScore) -> tuple[str, ...]:
    return (
        _percent(found.step_accuracy, found.step_standard_error),
        _percent(found.floor),
        _percent(found.episode_accuracy, found.episode_standard_error),
        _percent(found.episode_floor),
        str(found.step_count),
        str(found.episode_count),
        str(found.failed_count),
    )


def _percent(value: float | None, error: float | None = None) -> str:
    if value is None:
        return "unscored"
    return f"{value:.1%}" + (f" ± {error:.1%}" if error is not None else "")
