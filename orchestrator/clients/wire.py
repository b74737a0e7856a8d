"""Messages of orchestrator_service.proto to the orchestrator's own types, and back: for server.py and clients.py."""

from __future__ import annotations

from typing import Any

from loraretriever.v1 import generation_service_pb2, orchestrator_service_pb2

from infra.contract.composition import FusionMethod
from infra.contract.errors import InvalidArgumentError, field_path
from infra.contract.generation import Decoding
from infra.contract.retrieval import RetrievalOptions
from infra.runtime.wire import (
    datetime_from_timestamp,
    decoding_from_proto,
    decoding_to_proto,
    duration_from_seconds,
    enum_from_proto,
    enum_to_proto,
    fusion_method_from_proto,
    fusion_method_to_proto,
    generation_from_proto,
    generation_to_proto,
    prompt_from_proto,
    prompt_to_proto,
    retrieval_options_from_proto,
    retrieval_options_to_proto,
    retrieval_timings_from_proto,
    retrieval_timings_to_proto,
    seconds_from_duration,
    selection_from_proto,
    selection_to_proto,
    timestamp_from_datetime,
)
from orchestrator.answering.model_info import ModelInfo, ModelLimits, ResidentAdapter
from orchestrator.answering.pipeline import Answer, Question
from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.evaluation.actions import POINT_TOLERANCE_PX
from orchestrator.evaluation.metrics.legacy import LEGACY_THRESHOLD
from orchestrator.evaluation.spec import DatasetSpec, EvaluatedStrategy, EvaluationSpec, PromptProtocol
from orchestrator.jobs.job import Evaluation, EvaluationState

pb = orchestrator_service_pb2


def question_from_proto(message: pb.AnswerRequest | pb.StreamAnswerRequest) -> Question:
    """Return what is asked; a strategy that is not said is mixture. The oracle is refused: evaluation only."""
    strategy = enum_from_proto(AnswerStrategy, pb.AnswerStrategy, message.strategy, "strategy")
    if strategy is not None and strategy.evaluation_only:
        raise InvalidArgumentError(
            "strategy",
            f"{strategy.value} exists in evaluation only; to name adapters, use selection or mixture with "
            "retrieval.include",
        )
    with field_path("prompt"):
        prompt = prompt_from_proto(message.prompt)
    return Question(
        prompt=prompt,
        strategy=strategy or AnswerStrategy.MIXTURE,
        retrieval=_retrieval(message),
        fusion_method=fusion_method_from_proto(message.fusion_method, "fusion_method") or FusionMethod.LINEAR,
        decoding=_decoding(message),
    )


def question_to_proto(question: Question) -> dict[str, Any]:
    """Return the fields that AnswerRequest and StreamAnswerRequest share."""
    return {
        "prompt": prompt_to_proto(question.prompt),
        "retrieval": retrieval_options_to_proto(question.retrieval),
        "strategy": enum_to_proto(pb.AnswerStrategy, question.strategy),
        "fusion_method": fusion_method_to_proto(question.fusion_method),
        "decoding": decoding_to_proto(question.decoding),
    }


def answer_from_proto(message: pb.AnswerResponse, total_s: float) -> Answer:
    """Return an answer; `total_s` is what the caller measured."""
    timed = message.HasField("retrieval_timings")
    return Answer(
        generation=generation_from_proto(message.answer),
        selection=selection_from_proto(message.selection),
        catalogue_revision=message.catalogue_revision,
        retrieval_s=seconds_from_duration(message.retrieval_time),
        total_s=total_s,
        retrieval_timings=retrieval_timings_from_proto(message.retrieval_timings) if timed else None,
        stale=message.stale,
    )


def answer_to_proto(answer: Answer) -> pb.AnswerResponse:
    """Return an answer as its message."""
    timings = answer.retrieval_timings
    return pb.AnswerResponse(
        answer=generation_to_proto(answer.generation),
        selection=selection_to_proto(answer.selection),
        catalogue_revision=answer.catalogue_revision,
        retrieval_time=duration_from_seconds(answer.retrieval_s),
        retrieval_timings=None if timings is None else retrieval_timings_to_proto(timings),
        stale=answer.stale,
    )


def spec_from_proto(message: pb.EvaluationSpec) -> EvaluationSpec:
    """Return what a job is asked to do."""
    datasets = []
    for index, dataset in enumerate(message.datasets):
        with field_path(f"datasets[{index}]"):
            datasets.append(_dataset_from_proto(dataset))
    strategies = []
    for index, strategy in enumerate(message.strategies):
        with field_path(f"strategies[{index}]"):
            strategies.append(_strategy_from_proto(strategy))
    protocol = enum_from_proto(PromptProtocol, pb.EvaluationProtocol, message.protocol, "protocol")
    return EvaluationSpec(
        datasets=tuple(datasets),
        strategies=tuple(strategies),
        protocol=protocol or PromptProtocol.STEP,
        retrieval=_retrieval(message),
        decoding=_decoding(message),
        max_episodes=message.max_episodes or None,
        seed=message.seed,
        shard_size=message.shard_size or None,
        image_root=message.image_root,
        legacy_threshold=message.legacy_threshold if message.HasField("legacy_threshold") else LEGACY_THRESHOLD,
        point_tolerance_px=message.point_tolerance_px if message.HasField("point_tolerance_px") else POINT_TOLERANCE_PX,
    )


def spec_to_proto(spec: EvaluationSpec) -> pb.EvaluationSpec:
    """Return what a job is asked to do as its message."""
    return pb.EvaluationSpec(
        datasets=[
            pb.Dataset(
                name=each.name,
                uri=each.uri,
                adapter_id=each.adapter_id,
                kind=each.kind,
                adapter_field=each.adapter_field,
                adapter_of=dict(each.adapter_of),
                sha256=each.sha256,
            )
            for each in spec.datasets
        ],
        strategies=[
            pb.EvaluatedStrategy(
                name=each.name,
                strategy=enum_to_proto(pb.AnswerStrategy, each.strategy),
                fusion_method=fusion_method_to_proto(each.fusion_method),
                exclude_own_adapter=each.exclude_own_adapter,
            )
            for each in spec.strategies
        ],
        protocol=enum_to_proto(pb.EvaluationProtocol, spec.protocol),
        retrieval=retrieval_options_to_proto(spec.retrieval),
        decoding=decoding_to_proto(spec.decoding),
        max_episodes=spec.max_episodes or 0,
        seed=spec.seed,
        shard_size=spec.shard_size or 0,
        image_root=spec.image_root,
        legacy_threshold=spec.legacy_threshold,
        point_tolerance_px=spec.point_tolerance_px,
    )


def evaluation_from_proto(message: pb.Evaluation) -> Evaluation:
    """Return a job."""
    state = enum_from_proto(EvaluationState, pb.EvaluationState, message.state, "state")
    if state is None:
        raise InvalidArgumentError("state", "the job does not say where it stands")
    with field_path("spec"):
        spec = spec_from_proto(message.spec)
    return Evaluation(
        evaluation_id=message.evaluation_id,
        spec=spec,
        state=state,
        total_samples=message.total_samples,
        create_time=datetime_from_timestamp(message.create_time),
        output_uri=message.output_uri,
        done_samples=message.done_samples,
        failed_samples=message.failed_samples,
        bad_rows=message.bad_rows,
        end_time=datetime_from_timestamp(message.end_time) if message.HasField("end_time") else None,
        error=message.error,
        stalled=message.stalled,
    )


def evaluation_to_proto(job: Evaluation) -> pb.Evaluation:
    """Return a job as its message."""
    return pb.Evaluation(
        evaluation_id=job.evaluation_id,
        spec=spec_to_proto(job.spec),
        state=enum_to_proto(pb.EvaluationState, job.state),
        total_samples=job.total_samples,
        done_samples=job.done_samples,
        failed_samples=job.failed_samples,
        bad_rows=job.bad_rows,
        create_time=timestamp_from_datetime(job.create_time),
        end_time=timestamp_from_datetime(job.end_time) if job.end_time is not None else None,
        error=job.error,
        output_uri=job.output_uri,
        stalled=job.stalled,
    )


def model_from_proto(message: generation_service_pb2.GetModelResponse) -> ModelInfo:
    """Return what the generation service runs."""
    limits = message.limits
    return ModelInfo(
        base_model=message.base_model,
        family=message.family,
        device=message.device,
        dtype=message.dtype,
        limits=ModelLimits(**{name.name: value for name, value in limits.ListFields()}),
        residents=tuple(resident_from_proto(each) for each in message.residents),
        revision=message.revision,
    )


def resident_from_proto(message: generation_service_pb2.ResidentAdapter) -> ResidentAdapter:
    """Return an adapter on the device."""
    return ResidentAdapter(message.adapter_id, message.revision, message.rank, message.byte_size, message.pinned)


def _decoding(message: Any) -> Decoding:
    """Return a message's `decoding`, errors below that name."""
    with field_path("decoding"):
        return decoding_from_proto(message.decoding)


def _retrieval(message: Any) -> RetrievalOptions:
    with field_path("retrieval"):
        return retrieval_options_from_proto(message.retrieval)


def _dataset_from_proto(message: pb.Dataset) -> DatasetSpec:
    return DatasetSpec(
        name=message.name,
        uri=message.uri,
        adapter_id=message.adapter_id,
        kind=message.kind,
        adapter_field=message.adapter_field,
        adapter_of=tuple(sorted(message.adapter_of.items())),
        sha256=message.sha256,
    )


def _strategy_from_proto(message: pb.EvaluatedStrategy) -> EvaluatedStrategy:
    strategy = enum_from_proto(AnswerStrategy, pb.AnswerStrategy, message.strategy, "strategy")
    return EvaluatedStrategy(
        strategy=strategy or AnswerStrategy.MIXTURE,
        fusion_method=fusion_method_from_proto(message.fusion_method, "fusion_method") or FusionMethod.LINEAR,
        exclude_own_adapter=message.exclude_own_adapter,
        name=message.name,
    )
