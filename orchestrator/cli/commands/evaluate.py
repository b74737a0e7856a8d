"""`loraretriever evaluate ...`: evaluation jobs, and scoring of result files."""

from __future__ import annotations

from typing import Annotated

import typer

from infra.contract.generation import Decoding
from infra.contract.retrieval import RetrievalOptions
from orchestrator.cli import output as console
from orchestrator.cli.ci_gate import gate_of
from orchestrator.cli.commands import jobs
from orchestrator.cli.commands import judge as judging
from orchestrator.cli.commands import matrix as matrix_command
from orchestrator.cli.commands import score as scoring
from orchestrator.cli.commands.ask import (
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
from orchestrator.cli.dataset_args import (
    AdapterLabels,
    absolute,
    complete_strategies,
    dataset_specs,
    files_of,
    read_mapping,
    strategies_of,
)
from orchestrator.cli.options import (
    AdapterField,
    AdapterMap,
    AdapterOf,
    AdaptersByName,
    Data,
    FailOn,
    FailUnder,
    GpuId,
    ImageRoot,
    MaxFailed,
    NumSamples,
    PointTolerance,
    ProtocolOption,
    RequestId,
    Seed,
    ShardSize,
    TestData,
    Threshold,
    Watch,
)
from orchestrator.cli.targets import AsJson, OrchestratorTarget
from orchestrator.evaluation.spec import EvaluationSpec, PromptProtocol

app = typer.Typer(no_args_is_help=True, help="Run evaluation jobs, follow them, and score and compare results.")
app.command("matrix")(matrix_command.matrix)
app.command("score")(scoring.score)
app.command("judge")(judging.judge)
app.command("compare")(scoring.compare_results)
app.command("status")(jobs.status)
app.command("list")(jobs.list_jobs)
app.command("watch")(jobs.watch)
app.command("report")(jobs.report)
app.command("cancel")(jobs.cancel)
app.command("retry")(jobs.retry)
app.command("delete")(jobs.delete)


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
            autocompletion=complete_strategies,
        ),
    ] = None,
    adapter: AdapterOf = None,
    adapters_by_name: AdaptersByName = False,
    adapter_field: AdapterField = "",
    adapter_map: AdapterMap = None,
    top_k: TopK = None,
    lora_type: LoraType = ALL_KINDS,
    num_samples: NumSamples = None,
    protocol: ProtocolOption = PromptProtocol.STEP,
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
        bool, typer.Option("--evaluate-only", help="Score the data, which are files of results, and run nothing.")
    ] = False,
    threshold: Threshold = None,
    point_tolerance: PointTolerance = None,
    metric: jobs.JobMetricOption = None,
    fail_under: FailUnder = None,
    max_failed: MaxFailed = None,
    fail_on: FailOn = None,
    gpu_id: GpuId = "",
    orchestrator_target: OrchestratorTarget = "",
    as_json: AsJson = False,
) -> None:
    """Evaluate strategies on datasets: records of every sample, and a report."""
    gate = gate_of(fail_under, max_failed, fail_on, metric=metric, watch=watch)
    options = scoring.scoring_options(None, threshold, point_tolerance)
    files = files_of(data, test_data, gpu_id)
    if evaluate_only:
        scoring.score_files(files, gate, options, as_json)
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
        image_root=absolute(image_root),
        legacy_threshold=options.legacy_threshold,
        point_tolerance_px=options.point_tolerance_px,
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
