"""Protobuf messages to the plain dataclasses of infra.contract, and back.

Every `*_from_proto` raises InvalidArgumentError with a field path relative to the message it was given; callers put
the rest in front: `with field("prompt"): prompt_from_proto(request.prompt)`. An unset enum, and 0 where the contract
says so, is None: the server's default.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TypeVar, assert_never

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from loraretriever.v1 import adapter_pb2, generation_service_pb2, prompt_pb2, retrieval_service_pb2

from infra.contract.adapter import Adapter
from infra.contract.composition import Base, Composition, Fusion, FusionMethod, Mixture, WeightedAdapter
from infra.contract.errors import InvalidArgumentError, field
from infra.contract.generation import Decoding, FinishReason, Generation, Timings, Usage
from infra.contract.prompt import ImagePart, Message, Part, Prompt, Role, TextPart
from infra.contract.retrieval import Match, RetrievalOptions, RetrievalStrategy, Selection, Weighting

_E = TypeVar("_E", bound=StrEnum)


def enum_from_proto(cls: type[_E], wrapper: Any, value: int, name: str) -> _E | None:
    """Return the member of `cls` that a protobuf enum value stands for; None when it is unspecified.

    `wrapper` is the protobuf enum, whose names are the members' with a common prefix; `name` is the field's.
    """
    if value == 0:
        return None
    prefix = wrapper.Name(0).removesuffix("UNSPECIFIED")
    known = {member.name: member for member in cls}
    if value not in wrapper.values():
        raise InvalidArgumentError(name, f"{value} is no {cls.__name__}; use one of {', '.join(known)}")
    return known[wrapper.Name(value).removeprefix(prefix)]


def enum_to_proto(wrapper: Any, member: StrEnum | None) -> Any:
    """Return the protobuf enum value of a member; unspecified for None."""
    if member is None:
        return 0
    return wrapper.Value(wrapper.Name(0).removesuffix("UNSPECIFIED") + member.name)


def seconds_from_duration(message: Duration) -> float:
    """Return a duration in seconds."""
    return message.seconds + message.nanos * 1e-9


def duration_from_seconds(seconds: float) -> Duration:
    """Return seconds as a duration, to the nanosecond."""
    whole, nanos = divmod(round(seconds * 1e9), 1_000_000_000)
    return Duration(seconds=whole, nanos=nanos)


def datetime_from_timestamp(message: Timestamp) -> datetime:
    """Return a timestamp as an aware datetime in UTC."""
    return message.ToDatetime(tzinfo=UTC)


def timestamp_from_datetime(moment: datetime) -> Timestamp:
    """Return an aware datetime as a timestamp."""
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def part_from_proto(message: prompt_pb2.Part) -> Part:
    """Return the text or image of a part."""
    match message.WhichOneof("content"):
        case "text":
            return TextPart(message.text)
        case "image":
            return ImagePart(message.image.data, message.image.mime_type)
        case _:
            raise InvalidArgumentError("content", "the part is empty; set text or image")


def part_to_proto(part: Part) -> prompt_pb2.Part:
    """Return a part as its message."""
    match part:
        case TextPart():
            return prompt_pb2.Part(text=part.text)
        case ImagePart():
            return prompt_pb2.Part(image=prompt_pb2.Image(data=part.data, mime_type=part.mime_type))
        case _:
            assert_never(part)


def message_from_proto(message: prompt_pb2.Message) -> Message:
    """Return one turn; a role that is not said is the user's."""
    role = enum_from_proto(Role, prompt_pb2.Role, message.role, "role") or Role.USER
    parts = []
    for index, part in enumerate(message.parts):
        with field(f"parts[{index}]"):
            parts.append(part_from_proto(part))
    return Message(role, tuple(parts))


def message_to_proto(message: Message) -> prompt_pb2.Message:
    """Return one turn as its message."""
    role = enum_to_proto(prompt_pb2.Role, message.role)
    return prompt_pb2.Message(role=role, parts=[part_to_proto(part) for part in message.parts])


def prompt_from_proto(message: prompt_pb2.Prompt) -> Prompt:
    """Return a prompt."""
    messages = []
    for index, turn in enumerate(message.messages):
        with field(f"messages[{index}]"):
            messages.append(message_from_proto(turn))
    return Prompt(tuple(messages))


def prompt_to_proto(prompt: Prompt) -> prompt_pb2.Prompt:
    """Return a prompt as its message."""
    return prompt_pb2.Prompt(messages=[message_to_proto(message) for message in prompt.messages])


def prompts_from_proto(messages: Iterable[prompt_pb2.Prompt]) -> tuple[Prompt, ...]:
    """Return prompts; errors are below "prompts[i]", and none at all is an error of "prompts"."""
    prompts = []
    for index, message in enumerate(messages):
        with field(f"prompts[{index}]"):
            prompts.append(prompt_from_proto(message))
    if not prompts:
        raise InvalidArgumentError("prompts", "there is none; send at least one prompt")
    return tuple(prompts)


def weighted_adapter_from_proto(message: adapter_pb2.WeightedAdapter) -> WeightedAdapter:
    """Return an adapter's share."""
    return WeightedAdapter(message.adapter_id, message.weight, message.revision)


def weighted_adapter_to_proto(adapter: WeightedAdapter) -> adapter_pb2.WeightedAdapter:
    """Return an adapter's share as its message."""
    return adapter_pb2.WeightedAdapter(adapter_id=adapter.adapter_id, revision=adapter.revision, weight=adapter.weight)


def composition_from_proto(message: generation_service_pb2.Composition) -> Composition:
    """Return a composition; unset is the base model alone."""
    kind = message.WhichOneof("kind")
    match kind:
        case "mixture":
            with field("mixture"):
                return Mixture(_shares(message.mixture.adapters))
        case "fusion":
            with field("fusion"):
                method = fusion_method_from_proto(message.fusion.method)
                return Fusion(_shares(message.fusion.adapters), method or FusionMethod.LINEAR)
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
        case Fusion(adapters, method):
            shares = [weighted_adapter_to_proto(adapter) for adapter in adapters]
            fusion = generation_service_pb2.Fusion(adapters=shares, method=fusion_method_to_proto(method))
            return generation_service_pb2.Composition(fusion=fusion)
        case _:
            assert_never(composition)


def fusion_method_from_proto(value: int, name: str = "method") -> FusionMethod | None:
    """Return a fusion method; None when it is unspecified."""
    return enum_from_proto(FusionMethod, generation_service_pb2.FusionMethod, value, name)


def fusion_method_to_proto(method: FusionMethod | None) -> generation_service_pb2.FusionMethod:
    """Return the protobuf value of a fusion method."""
    value: generation_service_pb2.FusionMethod = enum_to_proto(generation_service_pb2.FusionMethod, method)
    return value


def decoding_from_proto(message: generation_service_pb2.Decoding) -> Decoding:
    """Return how to decode."""
    return Decoding(
        max_new_tokens=message.max_new_tokens or None,
        temperature=message.temperature if message.HasField("temperature") else 0.0,
        top_p=message.top_p if message.HasField("top_p") else 1.0,
        token_top_k=message.token_top_k if message.HasField("token_top_k") else 0,
        seed=message.seed if message.HasField("seed") else None,
        stop=tuple(message.stop),
    )


def decoding_to_proto(decoding: Decoding) -> generation_service_pb2.Decoding:
    """Return how to decode as its message."""
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
        raise InvalidArgumentError("finish_reason", "the answer does not say why it ended")
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
        applied=_shares(message.applied, "applied"),
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
    )


def adapter_from_proto(message: adapter_pb2.Adapter) -> Adapter:
    """Return an adapter."""
    return Adapter(
        adapter_id=message.adapter_id,
        base_model=message.base_model,
        checkpoint_uri=message.checkpoint_uri,
        kind=message.kind,
        display_name=message.display_name,
        description=message.description,
        tags=tuple(message.tags),
        rank=message.rank,
        revision=message.revision,
        example_count=message.example_count,
        update_time=datetime_from_timestamp(message.update_time) if message.HasField("update_time") else None,
    )


def adapter_to_proto(adapter: Adapter) -> adapter_pb2.Adapter:
    """Return an adapter as its message."""
    return adapter_pb2.Adapter(
        adapter_id=adapter.adapter_id,
        display_name=adapter.display_name,
        description=adapter.description,
        base_model=adapter.base_model,
        kind=adapter.kind,
        tags=adapter.tags,
        checkpoint_uri=adapter.checkpoint_uri,
        rank=adapter.rank,
        revision=adapter.revision,
        example_count=adapter.example_count,
        update_time=timestamp_from_datetime(adapter.update_time) if adapter.update_time is not None else None,
    )


def retrieval_options_from_proto(message: retrieval_service_pb2.RetrievalOptions) -> RetrievalOptions:
    """Return which adapters to look for."""
    return RetrievalOptions(
        top_k=message.top_k or None,
        base_model=message.base_model,
        kind=message.kind,
        tags=tuple(message.tags),
        include=tuple(message.include),
        exclude=tuple(message.exclude),
        strategy=enum_from_proto(
            RetrievalStrategy, retrieval_service_pb2.RetrievalStrategy, message.strategy, "strategy"
        ),
        weighting=enum_from_proto(Weighting, retrieval_service_pb2.Weighting, message.weighting, "weighting"),
        temperature=message.temperature if message.HasField("temperature") else None,
        min_similarity=message.min_similarity if message.HasField("min_similarity") else None,
    )


def retrieval_options_to_proto(options: RetrievalOptions) -> retrieval_service_pb2.RetrievalOptions:
    """Return which adapters to look for as its message."""
    return retrieval_service_pb2.RetrievalOptions(
        top_k=options.top_k or 0,
        base_model=options.base_model,
        kind=options.kind,
        tags=options.tags,
        include=options.include,
        exclude=options.exclude,
        strategy=enum_to_proto(retrieval_service_pb2.RetrievalStrategy, options.strategy),
        weighting=enum_to_proto(retrieval_service_pb2.Weighting, options.weighting),
        temperature=options.temperature,
        min_similarity=options.min_similarity,
    )


def match_from_proto(message: retrieval_service_pb2.Match) -> Match:
    """Return one retrieved adapter."""
    with field("adapter"):
        adapter = adapter_from_proto(message.adapter)
    return Match(adapter, message.similarity, message.weight)


def match_to_proto(match: Match) -> retrieval_service_pb2.Match:
    """Return one retrieved adapter as its message."""
    return retrieval_service_pb2.Match(
        adapter=adapter_to_proto(match.adapter), similarity=match.similarity, weight=match.weight
    )


def selection_from_proto(message: retrieval_service_pb2.Selection) -> Selection:
    """Return the matches of one prompt."""
    matches = []
    for index, match in enumerate(message.matches):
        with field(f"matches[{index}]"):
            matches.append(match_from_proto(match))
    return Selection(tuple(matches))


def selection_to_proto(selection: Selection) -> retrieval_service_pb2.Selection:
    """Return the matches of one prompt as their message."""
    return retrieval_service_pb2.Selection(matches=[match_to_proto(match) for match in selection.matches])


def vector_from_proto(message: retrieval_service_pb2.Vector, path: str) -> bytes:
    """Return a vector's little-endian float32 bytes: at least one value, and whole ones.

    Dimension and finiteness are for whoever knows the embedder. `path` is the vector's own, such as "vectors[0]".
    """
    data: bytes = message.float32
    if not data or len(data) % 4:
        raise InvalidArgumentError(
            f"{path}.float32", f"{len(data)} bytes are no float32 vector; send 4 little-endian bytes a dimension"
        )
    return data


def vector_to_proto(data: bytes) -> retrieval_service_pb2.Vector:
    """Return little-endian float32 bytes as a vector message."""
    return retrieval_service_pb2.Vector(float32=data)


def _shares(messages: Iterable[adapter_pb2.WeightedAdapter], name: str = "adapters") -> tuple[WeightedAdapter, ...]:
    shares = []
    for index, message in enumerate(messages):
        with field(f"{name}[{index}]"):
            shares.append(weighted_adapter_from_proto(message))
    return tuple(shares)
