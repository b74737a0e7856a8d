"""Conversion of generation_service.proto: compositions, decoding, answers."""

from __future__ import annotations

from typing import assert_never

from loraretriever.v1 import generation_service_pb2

from infra.contract.composition import Base, Composition, Fusion, FusionMethod, Mixture
from infra.contract.errors import InvalidArgumentError, field_path
from infra.contract.generation import Decoding, FinishReason, Generation, Timings, Usage
from infra.runtime.wire.adapter import weighted_adapter_to_proto, weighted_adapters_from_proto
from infra.runtime.wire.values import duration_from_seconds, enum_from_proto, enum_to_proto, seconds_from_duration


def composition_from_proto(message: generation_service_pb2.Composition) -> Composition:
    """Return a composition; unset is the base model alone."""
    kind = message.WhichOneof("kind")
    match kind:
        case "mixture":
            with field_path("mixture"):
                return Mixture(weighted_adapters_from_proto(message.mixture.adapters))
        case "fusion":
            with field_path("fusion"):
                return _fusion_from_proto(message.fusion)
        case _:
            return Base()


def composition_to_proto(composition: Composition) -> generation_service_pb2.Composition:
    """Return a composition as its message."""
    match composition:
        case Base():
            return generation_service_pb2.Composition()
        case Mixture(adapters):
            shares = [weighted_adapter_to_proto(adapter) for adapter in adapters]
            return generation_service_pb2.Composition(mixture=generation_service_pb2.Mixture(adapters=shares))
        case Fusion():
            return generation_service_pb2.Composition(fusion=_fusion_to_proto(composition))
        case _:
            assert_never(composition)


def _fusion_from_proto(message: generation_service_pb2.Fusion) -> Fusion:
    return Fusion(
        adapters=weighted_adapters_from_proto(message.adapters),
        method=fusion_method_from_proto(message.method) or FusionMethod.AUTO,
        rank=message.rank if message.HasField("rank") else None,
        density=message.density if message.HasField("density") else None,
        seed=message.seed if message.HasField("seed") else None,
    )


def _fusion_to_proto(fusion: Fusion) -> generation_service_pb2.Fusion:
    return generation_service_pb2.Fusion(
        adapters=[weighted_adapter_to_proto(adapter) for adapter in fusion.adapters],
        method=fusion_method_to_proto(fusion.method),
        rank=fusion.rank,
        density=fusion.density,
        seed=fusion.seed,
    )


def fusion_method_from_proto(value: int, name: str = "method") -> FusionMethod | None:
    """Return a fusion method; None if it is unspecified."""
    return enum_from_proto(FusionMethod, generation_service_pb2.FusionMethod, value, name)


def fusion_method_to_proto(method: FusionMethod | None) -> generation_service_pb2.FusionMethod:
    """Return the protobuf value of a fusion method."""
    value: generation_service_pb2.FusionMethod = enum_to_proto(generation_service_pb2.FusionMethod, method)
    return value


def decoding_from_proto(message: generation_service_pb2.Decoding) -> Decoding:
    """Return the decoding options."""
    return Decoding(
        max_new_tokens=message.max_new_tokens or None,
        temperature=message.temperature if message.HasField("temperature") else 0.0,
        top_p=message.top_p if message.HasField("top_p") else 1.0,
        token_top_k=message.token_top_k if message.HasField("token_top_k") else 0,
        seed=message.seed if message.HasField("seed") else None,
        stop=tuple(message.stop),
    )


def decoding_to_proto(decoding: Decoding) -> generation_service_pb2.Decoding:
    """Return decoding options as their message."""
    return generation_service_pb2.Decoding(
        max_new_tokens=decoding.max_new_tokens or 0,
        temperature=decoding.temperature,
        top_p=decoding.top_p,
        token_top_k=decoding.token_top_k,
        seed=decoding.seed,
        stop=decoding.stop,
    )


def generation_from_proto(message: generation_service_pb2.GenerateResponse) -> Generation:
    """Return an answer."""
    reason = enum_from_proto(FinishReason, generation_service_pb2.FinishReason, message.finish_reason, "finish_reason")
    if reason is None:
        raise InvalidArgumentError("finish_reason", "the answer has no finish reason")
    usage, timings = message.usage, message.timings
    return Generation(
        text=message.text,
        finish_reason=reason,
        usage=Usage(usage.prompt_tokens, usage.image_tokens, usage.completion_tokens),
        timings=Timings(
            seconds_from_duration(timings.queue),
            seconds_from_duration(timings.prefill),
            seconds_from_duration(timings.decode),
        ),
        applied=weighted_adapters_from_proto(message.applied, "applied"),
        fusion_method=fusion_method_from_proto(message.fusion_method, "fusion_method"),
    )


def generation_to_proto(generation: Generation) -> generation_service_pb2.GenerateResponse:
    """Return an answer as its message."""
    usage, timings = generation.usage, generation.timings
    return generation_service_pb2.GenerateResponse(
        text=generation.text,
        finish_reason=enum_to_proto(generation_service_pb2.FinishReason, generation.finish_reason),
        usage=generation_service_pb2.Usage(
            prompt_tokens=usage.prompt_tokens,
            image_tokens=usage.image_tokens,
            completion_tokens=usage.completion_tokens,
        ),
        timings=generation_service_pb2.Timings(
            queue=duration_from_seconds(timings.queue_s),
            prefill=duration_from_seconds(timings.prefill_s),
            decode=duration_from_seconds(timings.decode_s),
        ),
        applied=[weighted_adapter_to_proto(adapter) for adapter in generation.applied],
        fusion_method=fusion_method_to_proto(generation.fusion_method) if generation.fusion_method else None,
    )
