"""Conversion between protobuf messages and the plain dataclasses of infra.contract.

Every `*_from_proto` raises InvalidArgumentError with a field path relative to the given message; callers prepend the
rest: `with field_path("prompt"): prompt_from_proto(request.prompt)`. An unset enum, and 0 where the contract says so,
becomes None: the server's default.
"""

from infra.runtime.wire.adapter import (
    adapter_from_proto,
    adapter_to_proto,
    weighted_adapter_from_proto,
    weighted_adapter_to_proto,
    weighted_adapters_from_proto,
)
from infra.runtime.wire.generation import (
    composition_from_proto,
    composition_to_proto,
    decoding_from_proto,
    decoding_to_proto,
    fusion_method_from_proto,
    fusion_method_to_proto,
    generation_from_proto,
    generation_to_proto,
)
from infra.runtime.wire.prompt import (
    message_from_proto,
    message_to_proto,
    part_from_proto,
    part_to_proto,
    prompt_from_proto,
    prompt_to_proto,
    prompts_from_proto,
)
from infra.runtime.wire.retrieval import (
    catalogue_from_proto,
    catalogue_to_proto,
    match_from_proto,
    match_to_proto,
    retrieval_options_from_proto,
    retrieval_options_to_proto,
    retrieval_timings_from_proto,
    retrieval_timings_to_proto,
    selection_from_proto,
    selection_to_proto,
)
from infra.runtime.wire.values import (
    datetime_from_timestamp,
    duration_from_seconds,
    enum_from_proto,
    enum_to_proto,
    seconds_from_duration,
    timestamp_from_datetime,
    vector_from_proto,
    vector_to_proto,
)

__all__ = [
    "adapter_from_proto",
    "adapter_to_proto",
    "catalogue_from_proto",
    "catalogue_to_proto",
    "composition_from_proto",
    "composition_to_proto",
    "datetime_from_timestamp",
    "decoding_from_proto",
    "decoding_to_proto",
    "duration_from_seconds",
    "enum_from_proto",
    "enum_to_proto",
    "fusion_method_from_proto",
    "fusion_method_to_proto",
    "generation_from_proto",
    "generation_to_proto",
    "match_from_proto",
    "match_to_proto",
    "message_from_proto",
    "message_to_proto",
    "part_from_proto",
    "part_to_proto",
    "prompt_from_proto",
    "prompt_to_proto",
    "prompts_from_proto",
    "retrieval_options_from_proto",
    "retrieval_options_to_proto",
    "retrieval_timings_from_proto",
    "retrieval_timings_to_proto",
    "seconds_from_duration",
    "selection_from_proto",
    "selection_to_proto",
    "timestamp_from_datetime",
    "vector_from_proto",
    "vector_to_proto",
    "weighted_adapter_from_proto",
    "weighted_adapter_to_proto",
    "weighted_adapters_from_proto",
]
