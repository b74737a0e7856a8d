"""`loraretriever evaluate matrix`: the paper's table, from one job."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from infra.contract.errors import InvalidArgumentError
from infra.contract.generation import Decoding
from infra.contract.retrieval import RetrievalOptions
from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.cli import output as console
from orchestrator.cli.ci_gate import Gate, gate_of
from orchestrator.cli.commands import jobs
from orchestrator.cli.commands.ask import (
    ALL_KINDS,
    LoraType,
    MaxNewTokens,
    TopK,
    Weigh,
    WeightingTemperature,
    kind_of,
)
from orchestrator.cli.commands.score import scoring_options
from orchestrator.cli.dataset_args import (
    AdapterLabels,
    absolute,
    complete_strategies,
    dataset_specs,
    files_of,
    read_mapping,
)
from orchestrator.cli.options import (
    AdapterField,
    AdapterMap,
    AdapterOf,
    AdaptersByName,
    Data,
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
from orchestrator.cli.progress import headline_table
from orchestrator.cli.targets import AsJson, OrchestratorTarget
from orchestrator.evaluation.job import Report
from orchestrator.evaluation.report.matrix import Matrix, build_matrix, domain_table, matrix_strategies, render_matrix
from orchestrator.evaluation.spec import EvaluationSpec, PromptProtocol


def matrix(
    *,
    data: Data = None,
    test_data: TestData = None,
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
    max_new_tokens: MaxNewTokens = None,
    image_root: ImageRoot = "",
    shard_size: ShardSize = None,
    request_id: RequestId = "",
    job_id: Annotated[
        str, typer.Option("--job", help="Start nothing: the table of this job, once it has ended.", show_default=False)
    ] = "",
    output: Annotated[Path | None, typer.Option(help="Also write the table, as Markdown or (.json) as JSON.")] = None,
    threshold: Threshold = None,
    point_tolerance: PointTolerance = None,
    fail_under: FailUnder = None,
    max_failed: MaxFailed = None,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            help="The strategy that --fail-under looks at, by its label; may be repeated (default: mixture).",
            autocompletion=complete_strategies,
        ),
    ] = None,
    watch: Watch = True,
    gpu_id: GpuId = "",
    orchestrator_target: OrchestratorTarget = "",
    as_json: AsJson = False,
) -> None:
    """The paper's table for your adapters: every strategy, in and out of domain, from one job.

    The adapter trained for each dataset must be known; unless options say otherwise it has the dataset's name.
    """
    gate = gate_of(fail_under, max_failed, fail_on, default=(AnswerStrategy.MIXTURE,), watch=watch)
    if job_id:
        if data or test_data or (threshold, point_tolerance) != (None, None):
            raise InvalidArgumentError("job", "the job has its data and its scores; leave those of a new one out")
        _show(jobs.follow_to_report(job_id, orchestrator_target), output, gate, as_json)
        return
    by_name = adapters_by_name or not (adapter or adapter_field or adapter_map)
    labels = AdapterLabels(adapter or (), by_name, adapter_field, read_mapping(adapter_map))
    scoring = scoring_options(None, threshold, point_tolerance)
    spec = EvaluationSpec(
        datasets=dataset_specs(files_of(data, test_data, gpu_id), labels, kind_of(lora_type)),
        strategies=matrix_strategies(),
        protocol=protocol,
        retrieval=RetrievalOptions(
            top_k=top_k, kind=kind_of(lora_type), weighting=weighting, temperature=weighting_temperature
        ),
        decoding=Decoding(max_new_tokens=max_new_tokens),
        max_episodes=num_samples,
        seed=seed,
        shard_size=shard_size,
        image_root=absolute(image_root),
        legacy_threshold=scoring.legacy_threshold,
        point_tolerance_px=scoring.point_tolerance_px,
    )
    gate.check_labels([strategy.label for strategy in spec.strategies])
    job = jobs.called(orchestrator_target, lambda client: client.create(spec, request_id))
    if not watch:
        jobs.print_job(job, as_json)
        return
    console.note(f"job {job.evaluation_id}: {len(spec.strategies)} strategies, {job.total_samples} samples")
    _show(jobs.follow_to_report(job.evaluation_id, orchestrator_target), output, gate, as_json)


def _show(found: Report, output: Path | None, gate: Gate, as_json: bool) -> None:
    summary = jobs.summary_of(found)
    jobs.warn(summary)
    made = build_matrix(summary)
    if output is not None:
        _write(output, made)
    if as_json:
        console.print_json(made)
    else:
        console.results().print(headline_table(domain_table(made)))
        jobs.print_places(found.output_uri)
    gate.check(summary)
    jobs.check_success(summary.facts.evaluation_id, summary.facts.state)


def _write(file: Path, made: Matrix) -> None:
    text = json.dumps(asdict(made), indent=2) + "\n" if file.suffix == ".json" else render_matrix(made)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidArgumentError("output", f"{file} cannot be written: {error.strerror}") from error
    console.note(f"table: {file}")
