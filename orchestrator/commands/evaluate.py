"""`loraretriever evaluate ...`: evaluation jobs, and scoring of result files."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from infra.contract.errors import InvalidArgumentError
from infra.contract.generation import Decoding
from infra.contract.retrieval import RetrievalOptions
from orchestrator.commands import console, jobs, judging, scoring
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
from orchestrator.commands.evaluated import AdapterLabels, dataset_specs, read_mapping, strategies_of
from orchestrator.commands.gate import Gate, JobMetric
from orchestrator.commands.job_options import (
    AdapterField,
    AdapterMap,
    AdapterOf,
    AdaptersByName,
    Data,
    FailUnder,
    GpuId,
    ImageRoot,
    NumSamples,
    ProtocolOption,
    RequestId,
    Seed,
    ShardSize,
    TestData,
    Threshold,
    Watch,
)
from orchestrator.commands.targets import AsJson, OrchestratorTarget
from orchestrator.evaluation.job import Report
from orchestrator.evaluation.matrix import COLUMNS, NOTE, Matrix, matrix_of, matrix_strategies, render_matrix, rows_of
from orchestrator.evaluation.metrics.legacy import LEGACY_THRESHOLD
from orchestrator.evaluation.result_files import MetricName, score_file
from orchestrator.evaluation.spec import AnswerStrategy, EvaluationSpec, Protocol

app = typer.Typer(no_args_is_help=True, help="Run evaluation jobs, follow them, and score and compare results.")
app.command("score")(scoring.score)
app.command("judge")(judging.judge)
app.command("compare")(scoring.compare_results)
app.command("status")(jobs.status)
app.command("list")(jobs.list_jobs)
app.command("watch")(jobs.watch)
app.command("report")(jobs.report)
app.command("cancel")(jobs.cancel)


@app.command("run")
def run(
    *,
    data: Data = None,
    test_data: TestData = None,
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            "--strategy",
            "--merge-method",
            help="base, selection, mixture, fusion, fusion-concat, oracle, uniform-all, random-k, ..., each with "
            "-out-of-domain to hide the dataset's own adapter; may be repeated (default: mixture).",
        ),
    ] = None,
    adapter: AdapterOf = None,
    adapters_by_name: AdaptersByName = False,
    adapter_field: AdapterField = "",
    adapter_map: AdapterMap = None,
    top_k: TopK = None,
    lora_type: LoraType = ALL_KINDS,
    num_samples: NumSamples = None,
    protocol: ProtocolOption = Protocol.STEP,
    seed: Seed = 0,
    weighting: Weigh = None,
    weighting_temperature: WeightingTemperature = None,
    min_similarity: MinSimilarity = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = 0.0,
    image_root: ImageRoot = "",
    shard_size: ShardSize = None,
    request_id: RequestId = "",
    watch: Watch = True,
    show_similarities: Annotated[
        bool, typer.Option("--show-similarities", help="Say where the similarities of every sample are written.")
    ] = False,
    evaluate_only: Annotated[
        bool, typer.Option("--evaluate-only", help="Score the files, which hold results, and run nothing.")
    ] = False,
    threshold: Threshold = LEGACY_THRESHOLD,
    metric: jobs.JobMetricOption = JobMetric.ACTION,
    fail_under: FailUnder = None,
    fail_on: jobs.FailOn = None,
    gpu_id: GpuId = "",
    orchestrator_target: OrchestratorTarget = "",
    as_json: AsJson = False,
) -> None:
    """Evaluate strategies on datasets: records of every sample, and a report."""
    gate = Gate(metric, fail_under, fail_on or ())
    files = _files(data, test_data, gpu_id)
    if evaluate_only:
        scored = [(file, score_file(Path(file), each, threshold)) for file in files for each in _BOTH]
        scoring.print_scores(scored, [], as_json)
        return
    labels = AdapterLabels(adapter or (), adapters_by_name, adapter_field, read_mapping(adapter_map))
    spec = EvaluationSpec(
        datasets=dataset_specs(files, labels, kind_of(lora_type)),
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
    gate.check_labels([strategy.label for strategy in spec.strategies])
    job = jobs.called(orchestrator_target, lambda client: client.create(spec, request_id))
    if show_similarities:
        console.note(f"similarities of every sample: records below {job.output_uri}")
    if not watch:
        jobs.print_job(job, as_json)
        return
    console.note(f"job {job.evaluation_id}: {job.total_samples} samples")
    found = jobs.follow_to_report(job.evaluation_id, orchestrator_target)
    jobs.print_headline(found, gate, as_json)


@app.command("matrix")
def matrix(
    *,
    data: Data = None,
    test_data: TestData = None,
    adapter: AdapterOf = None,
    adapter_field: AdapterField = "",
    adapter_map: AdapterMap = None,
    top_k: TopK = None,
    lora_type: LoraType = ALL_KINDS,
    num_samples: NumSamples = None,
    protocol: ProtocolOption = Protocol.STEP,
    seed: Seed = 0,
    weighting: Weigh = None,
    weighting_temperature: WeightingTemperature = None,
    max_new_tokens: MaxNewTokens = None,
    image_root: ImageRoot = "",
    shard_size: ShardSize = None,
    request_id: RequestId = "",
    job_id: Annotated[
        str, typer.Option("--job", help="Start nothing: the table of this job, once it has ended.", show_default=False)
    ] = "",
    output: Annotated[Path | None, typer.Option(help="Also write the table, as Markdown or (.json) as JSON.")] = None,
    fail_under: FailUnder = None,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(help="The strategy that --fail-under looks at, by its label; may be repeated (default: mixture)."),
    ] = None,
    watch: Watch = True,
    gpu_id: GpuId = "",
    orchestrator_target: OrchestratorTarget = "",
    as_json: AsJson = False,
) -> None:
    """The paper's table for your adapters: every strategy, in and out of domain, from one job.

    The adapter trained for each dataset must be known; unless options say otherwise it has the dataset's name.
    """
    gate = Gate(fail_under=fail_under, only=fail_on or (AnswerStrategy.MIXTURE,))
    if job_id:
        _show_matrix(jobs.follow_to_report(job_id, orchestrator_target), output, gate, as_json)
        return
    files = _files(data, test_data, gpu_id)
    by_name = not (adapter or adapter_field or adapter_map)
    labels = AdapterLabels(adapter or (), by_name, adapter_field, read_mapping(adapter_map))
    spec = EvaluationSpec(
        datasets=dataset_specs(files, labels, kind_of(lora_type)),
        strategies=matrix_strategies(),
        protocol=protocol,
        retrieval=RetrievalOptions(
            top_k=top_k, kind=kind_of(lora_type), weighting=weighting, temperature=weighting_temperature
        ),
        decoding=Decoding(max_new_tokens=max_new_tokens),
        max_episodes=num_samples,
        seed=seed,
        shard_size=shard_size,
        image_root=image_root,
    )
    gate.check_labels([strategy.label for strategy in spec.strategies])
    job = jobs.called(orchestrator_target, lambda client: client.create(spec, request_id))
    if not watch:
        jobs.print_job(job, as_json)
        return
    console.note(f"job {job.evaluation_id}: {len(spec.strategies)} strategies, {job.total_samples} samples")
    _show_matrix(jobs.follow_to_report(job.evaluation_id, orchestrator_target), output, gate, as_json)


def _show_matrix(found: Report, output: Path | None, gate: Gate, as_json: bool) -> None:
    summary = jobs.summary_of(found)
    jobs.warn(summary)
    made = matrix_of(summary)
    if output is not None:
        _write(output, made)
    if as_json:
        console.print_json(made)
    else:
        console.results().print(_matrix_table(made))
        console.results().print(f"report: {found.output_uri}/summary.md", soft_wrap=True)
    gate.check(summary)


_BOTH = (MetricName.ACTION, MetricName.LEGACY)


def _files(data: list[str] | None, test_data: list[str] | None, gpu_id: str) -> list[str]:
    files = [*(data or []), *(test_data or [])]
    if not files:
        raise InvalidArgumentError("", "name at least one JSONL file to evaluate on")
    if gpu_id:
        console.note(
            "--gpu-id has no effect on a job: the GPU is chosen where the model runs ('up', 'serve generation')"
        )
    return files


def _write(file: Path, made: Matrix) -> None:
    text = json.dumps(asdict(made), indent=2) + "\n" if file.suffix == ".json" else render_matrix(made)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidArgumentError("output", f"{file} cannot be written: {error.strerror}") from error
    console.note(f"table: {file}")


def _matrix_table(made: Matrix) -> Table:
    shown = Table(title="Step accuracy, %", caption=NOTE, caption_justify="left")
    for index, column in enumerate(COLUMNS):
        shown.add_column(column, justify="left" if index == 0 else "right")
    for row in rows_of(made):
        shown.add_row(*row)
    return shown
