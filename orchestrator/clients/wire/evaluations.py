"""Messages of EvaluationService to EvaluationSpec and Evaluation, and back."""

from __future__ import annotations

from loraretriever.v1 import orchestrator_service_pb2 as pb

from infra.contract.composition import FusionMethod
from infra.contract.errors import InvalidArgumentError, field_path
from infra.runtime.wire import (
    datetime_from_timestamp,
    decoding_to_proto,
    enum_from_proto,
    enum_to_proto,
    fusion_method_from_proto,
    fusion_method_to_proto,
    retrieval_options_to_proto,
    timestamp_from_datetime,
)
from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.clients.wire.answers import nested_decoding, nested_retrieval
from orchestrator.evaluation.actions import POINT_TOLERANCE_PX
from orchestrator.evaluation.job import Evaluation, EvaluationState
from orchestrator.evaluation.metrics.legacy import LEGACY_THRESHOLD
from orchestrator.evaluation.spec import DatasetSpec, EvaluatedStrategy, EvaluationSpec, PromptProtocol


def spec_from_proto(message: pb.EvaluationSpec) -> EvaluationSpec:
    """Return the specification of a job."""
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
        retrieval=nested_retrieval(message),
        decoding=nested_decoding(message),
        max_episodes=message.max_episodes or None,
        seed=message.seed,
        shard_size=message.shard_size or None,
        image_root=message.image_root,
        legacy_threshold=message.legacy_threshold if message.HasField("legacy_threshold") else LEGACY_THRESHOLD,
        point_tolerance_px=message.point_tolerance_px if message.HasField("point_tolerance_px") else POINT_TOLERANCE_PX,
    )


def spec_to_proto(spec: EvaluationSpec) -> pb.EvaluationSpec:
    """Return the specification of a job as its message."""
    return pb.EvaluationSpec(
        datasets=[
            pb.Dataset(
                name=dataset.name,
                uri=dataset.uri,
                adapter_id=dataset.adapter_id,
                kind=dataset.kind,
                adapter_field=dataset.adapter_field,
                adapter_of=dict(dataset.adapter_of),
                sha256=dataset.sha256,
            )
            for dataset in spec.datasets
        ],
        strategies=[
            pb.EvaluatedStrategy(
                name=strategy.name,
                strategy=enum_to_proto(pb.AnswerStrategy, strategy.strategy),
                fusion_method=fusion_method_to_proto(strategy.fusion_method),
                exclude_own_adapter=strategy.exclude_own_adapter,
            )
            for strategy in spec.strategies
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
        raise InvalidArgumentError("state", "the job has no state")
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
        fusion_method=fusion_method_from_proto(message.fusion_method, "fusion_method") or FusionMethod.AUTO,
        exclude_own_adapter=message.exclude_own_adapter,
        name=message.name,
    )
