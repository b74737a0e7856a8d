"""`loraretriever study`: a job under the published study's flags, defaults and protocol."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from infra.contract.composition import FusionMethod
from infra.contract.errors import InvalidArgumentError, field_path
from infra.contract.generation import Decoding
from infra.contract.retrieval import RetrievalOptions, Weighting
from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.cli import output as console
from orchestrator.cli.ci_gate import Gate
from orchestrator.cli.commands.score import print_study_scores, score_files
from orchestrator.cli.dataset_args import AdapterLabels, dataset_specs, local_path
from orchestrator.cli.job_client import follow_to_report
from orchestrator.cli.job_output import print_report
from orchestrator.cli.options.answering import kind_filter
from orchestrator.cli.options.binding import Sets, with_options
from orchestrator.cli.options.scoring import JobGateOptions
from orchestrator.cli.options.targets import OrchestratorTier
from orchestrator.cli.settings import environment
from orchestrator.cli.study_flags import ENVIRONMENT, STUDY_DEBUG_SAMPLES, STUDY_MAX_IMAGES
from orchestrator.evaluation.metrics.legacy import LEGACY_THRESHOLD
from orchestrator.evaluation.report.summary import ScoringOptions
from orchestrator.evaluation.spec import EvaluatedStrategy, EvaluationSpec, PromptProtocol


class MergeMethod(StrEnum):
    """The study's `--merge_method`."""

    MIXTURE = "mixture"
    FUSION = "fusion"


class LoraType(StrEnum):
    """The study's `--lora_type`."""

    ALL = "all"
    APP = "app"
    CATEGORY = "category"


class WeightMode(StrEnum):
    """The study's `--composition_weight_mode`: 1/k each, or softmax(5 * similarity)."""

    UNIFORM = "uniform"
    WEIGHTED = "weighted"


class CombinationType(StrEnum):
    """The study's `--combination_type` of a fusion; its `linear` falls back to svd for mixed ranks."""

    LINEAR = "linear"
    SVD = "svd"
    CAT = "cat"


_WEIGHTING = {WeightMode.UNIFORM: (Weighting.UNIFORM, None), WeightMode.WEIGHTED: (Weighting.SOFTMAX, 0.2)}
_FUSION = {
    CombinationType.LINEAR: FusionMethod.AUTO,
    CombinationType.SVD: FusionMethod.SVD,
    CombinationType.CAT: FusionMethod.CONCAT,
}


@with_options
def study(
    *,
    test_data: Annotated[list[str], typer.Option(help="JSONL file, or a folder of them; may be repeated.")],
    top_k: Annotated[int, typer.Option(help="Adapters to retrieve for an episode.")] = 3,
    merge_method: Annotated[
        MergeMethod, typer.Option(help="How they are composed."), Sets("strategies")
    ] = MergeMethod.MIXTURE,
    lora_type: Annotated[LoraType, typer.Option(help="Retrieve adapters of this kind only.")] = LoraType.ALL,
    composition_weight_mode: Annotated[
        WeightMode, typer.Option(help="uniform: 1/k each; weighted: softmax(5 * similarity)."), Sets("weighting")
    ] = WeightMode.UNIFORM,
    combination_type: Annotated[
        CombinationType, typer.Option(help="How a fusion merges; linear is svd where ranks differ.")
    ] = CombinationType.LINEAR,
    max_new_tokens: Annotated[int, typer.Option(help="Maximum number of tokens of an answer.")] = 512,
    temperature: Annotated[float, typer.Option(help="Divides the logits before sampling; 0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Makes sampling repeatable; it chooses no episodes here.")] = 42,
    debug: Annotated[
        bool, typer.Option("--debug", help=f"Without --num_samples: only the first {STUDY_DEBUG_SAMPLES} rows.")
    ] = False,
    num_samples: Annotated[
        int | None, typer.Option(help="Only the first rows of each file (default: all)."), Sets("max_episodes")
    ] = None,
    max_images: Annotated[
        int | None,
        typer.Option(help=f"Images of a prompt, the last ones (default: MAX_NUM, else {STUDY_MAX_IMAGES})."),
    ] = None,
    image_root: Annotated[str, typer.Option(help="Folder that image paths may also be relative to.")] = "",
    show_similarities: Annotated[
        bool, typer.Option("--show-similarities", help="Print where the similarities of every sample are written.")
    ] = False,
    evaluate_only: Annotated[
        bool, typer.Option("--evaluate-only", help="Score the data, which are result files, and run nothing.")
    ] = False,
    threshold: Annotated[
        float,
        typer.Option(help="Similarity above which the legacy metric calls a step right."),
        Sets("legacy_threshold"),
    ] = LEGACY_THRESHOLD,
    gpu_id: Annotated[str, typer.Option(help="Has no effect here: pass it to 'up' or 'serve generation'.")] = "",
    gating: JobGateOptions,
    orchestrator: OrchestratorTier,
) -> None:
    """Evaluate as the published study did: its flags, its defaults, one prompt and one retrieval an episode."""
    if gpu_id:
        console.note("--gpu-id has no effect here: the GPU is chosen where the model runs ('up', 'serve generation')")
    for name, remedy in ENVIRONMENT.items():
        if environment().variables.get(name):
            console.note(f"{name} has no effect here: {remedy}")
    gate = gating.gate()
    if evaluate_only:
        score_files(test_data, gate, ScoringOptions(legacy_threshold=threshold), orchestrator)
        return
    spec = study_spec(
        test_data,
        EvaluatedStrategy(AnswerStrategy(merge_method.value), _FUSION[combination_type]),
        retrieval=_retrieval(top_k, lora_type, composition_weight_mode),
        decoding=_decoding(max_new_tokens, temperature, seed),
        max_episodes=STUDY_DEBUG_SAMPLES if debug and num_samples is None else num_samples,
        max_images=_image_limit() if max_images is None else max_images,
        image_root=local_path(image_root),
        threshold=threshold,
    )
    _run(spec, gate, orchestrator, show_similarities)


def study_spec(
    files: list[str],
    strategy: EvaluatedStrategy,
    *,
    retrieval: RetrievalOptions,
    decoding: Decoding,
    max_episodes: int | None,
    max_images: int,
    image_root: str = "",
    threshold: float = LEGACY_THRESHOLD,
) -> EvaluationSpec:
    """Return the study's job: whole episodes in file order, the last images kept. Raises InvalidArgumentError."""
    return EvaluationSpec(
        datasets=dataset_specs(files, AdapterLabels(), retrieval.kind),
        strategies=(strategy,),
        protocol=PromptProtocol.SEQUENCE,
        retrieval=retrieval,
        decoding=decoding,
        max_episodes=max_episodes,
        image_root=image_root,
        legacy_threshold=threshold,
        first_episodes=True,
        max_images=max_images,
    )


def _retrieval(top_k: int, lora_type: LoraType, mode: WeightMode) -> RetrievalOptions:
    weighting, temperature = _WEIGHTING[mode]
    with field_path("retrieval"):
        return RetrievalOptions(
            top_k=top_k, kind=kind_filter(lora_type.value), weighting=weighting, temperature=temperature
        )


def _decoding(max_new_tokens: int, temperature: float, seed: int) -> Decoding:
    with field_path("decoding"):
        return Decoding(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)


def _image_limit() -> int:
    """Return MAX_NUM, which bounded the images of a prompt in the study's scripts, or their default."""
    given = environment().variables.get("MAX_NUM", "").strip() or str(STUDY_MAX_IMAGES)
    if not given.isdecimal() or int(given) < 1:
        raise InvalidArgumentError("max_images", f"MAX_NUM is {given[:40]!r} in the environment; set a number above 0")
    return int(given)


def _run(spec: EvaluationSpec, gate: Gate, orchestrator: OrchestratorTier, show_similarities: bool) -> None:
    gate.check_labels([strategy.label for strategy in spec.strategies])
    job = orchestrator.call_evaluations(lambda client: client.create(spec, ""))
    if show_similarities:
        console.note(f"similarities of every sample: records below {job.output_uri}")
    console.note(f"job {job.evaluation_id}: {job.total_samples} samples")
    report = follow_to_report(job.evaluation_id, orchestrator)
    if not orchestrator.as_json:
        print_study_scores(job.evaluation_id, spec.legacy_threshold, orchestrator)
    print_report(report, gate, orchestrator.as_json)
