import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import field_mask_pb2 as _field_mask_pb2
from loraretriever.v1 import adapter_pb2 as _adapter_pb2
from loraretriever.v1 import prompt_pb2 as _prompt_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RetrievalStrategy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RETRIEVAL_STRATEGY_UNSPECIFIED: _ClassVar[RetrievalStrategy]
    RETRIEVAL_STRATEGY_CENTROID: _ClassVar[RetrievalStrategy]
    RETRIEVAL_STRATEGY_MULTI_CENTROID: _ClassVar[RetrievalStrategy]
    RETRIEVAL_STRATEGY_NEAREST_EXAMPLES: _ClassVar[RetrievalStrategy]
    RETRIEVAL_STRATEGY_CALIBRATED: _ClassVar[RetrievalStrategy]
    RETRIEVAL_STRATEGY_TWO_COVARIANCE: _ClassVar[RetrievalStrategy]

class Weighting(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WEIGHTING_UNSPECIFIED: _ClassVar[Weighting]
    WEIGHTING_UNIFORM: _ClassVar[Weighting]
    WEIGHTING_SOFTMAX: _ClassVar[Weighting]
    WEIGHTING_SIMILARITY: _ClassVar[Weighting]
    WEIGHTING_CLEAR_BEST: _ClassVar[Weighting]
    WEIGHTING_PROBABILITY: _ClassVar[Weighting]

class SelectionReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SELECTION_REASON_UNSPECIFIED: _ClassVar[SelectionReason]
    SELECTION_REASON_EMPTY_CATALOGUE: _ClassVar[SelectionReason]
    SELECTION_REASON_NO_ADAPTERS_OF_MODEL: _ClassVar[SelectionReason]
    SELECTION_REASON_NO_ADAPTERS_ALLOWED: _ClassVar[SelectionReason]
    SELECTION_REASON_BELOW_MINIMUM_SIMILARITY: _ClassVar[SelectionReason]
    SELECTION_REASON_NOTHING_FITS: _ClassVar[SelectionReason]
RETRIEVAL_STRATEGY_UNSPECIFIED: RetrievalStrategy
RETRIEVAL_STRATEGY_CENTROID: RetrievalStrategy
RETRIEVAL_STRATEGY_MULTI_CENTROID: RetrievalStrategy
RETRIEVAL_STRATEGY_NEAREST_EXAMPLES: RetrievalStrategy
RETRIEVAL_STRATEGY_CALIBRATED: RetrievalStrategy
RETRIEVAL_STRATEGY_TWO_COVARIANCE: RetrievalStrategy
WEIGHTING_UNSPECIFIED: Weighting
WEIGHTING_UNIFORM: Weighting
WEIGHTING_SOFTMAX: Weighting
WEIGHTING_SIMILARITY: Weighting
WEIGHTING_CLEAR_BEST: Weighting
WEIGHTING_PROBABILITY: Weighting
SELECTION_REASON_UNSPECIFIED: SelectionReason
SELECTION_REASON_EMPTY_CATALOGUE: SelectionReason
SELECTION_REASON_NO_ADAPTERS_OF_MODEL: SelectionReason
SELECTION_REASON_NO_ADAPTERS_ALLOWED: SelectionReason
SELECTION_REASON_BELOW_MINIMUM_SIMILARITY: SelectionReason
SELECTION_REASON_NOTHING_FITS: SelectionReason

class RetrievalOptions(_message.Message):
    __slots__ = ("top_k", "base_model", "kind", "tags", "include", "exclude", "strategy", "weighting", "temperature", "min_similarity", "min_log_odds")
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    WEIGHTING_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    MIN_SIMILARITY_FIELD_NUMBER: _ClassVar[int]
    MIN_LOG_ODDS_FIELD_NUMBER: _ClassVar[int]
    top_k: int
    base_model: str
    kind: str
    tags: _containers.RepeatedScalarFieldContainer[str]
    include: _containers.RepeatedScalarFieldContainer[str]
    exclude: _containers.RepeatedScalarFieldContainer[str]
    strategy: RetrievalStrategy
    weighting: Weighting
    temperature: float
    min_similarity: float
    min_log_odds: float
    def __init__(self, top_k: _Optional[int] = ..., base_model: _Optional[str] = ..., kind: _Optional[str] = ..., tags: _Optional[_Iterable[str]] = ..., include: _Optional[_Iterable[str]] = ..., exclude: _Optional[_Iterable[str]] = ..., strategy: _Optional[_Union[RetrievalStrategy, str]] = ..., weighting: _Optional[_Union[Weighting, str]] = ..., temperature: _Optional[float] = ..., min_similarity: _Optional[float] = ..., min_log_odds: _Optional[float] = ...) -> None: ...

class RetrieveAdaptersRequest(_message.Message):
    __slots__ = ("prompts", "options")
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    prompts: _containers.RepeatedCompositeFieldContainer[_prompt_pb2.Prompt]
    options: RetrievalOptions
    def __init__(self, prompts: _Optional[_Iterable[_Union[_prompt_pb2.Prompt, _Mapping]]] = ..., options: _Optional[_Union[RetrievalOptions, _Mapping]] = ...) -> None: ...

class RetrieveAdaptersResponse(_message.Message):
    __slots__ = ("selections", "catalogue_revision", "stale", "timings")
    SELECTIONS_FIELD_NUMBER: _ClassVar[int]
    CATALOGUE_REVISION_FIELD_NUMBER: _ClassVar[int]
    STALE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    selections: _containers.RepeatedCompositeFieldContainer[Selection]
    catalogue_revision: str
    stale: bool
    timings: RetrievalTimings
    def __init__(self, selections: _Optional[_Iterable[_Union[Selection, _Mapping]]] = ..., catalogue_revision: _Optional[str] = ..., stale: bool = ..., timings: _Optional[_Union[RetrievalTimings, _Mapping]] = ...) -> None: ...

class RetrievalTimings(_message.Message):
    __slots__ = ("embed", "search")
    EMBED_FIELD_NUMBER: _ClassVar[int]
    SEARCH_FIELD_NUMBER: _ClassVar[int]
    embed: _duration_pb2.Duration
    search: _duration_pb2.Duration
    def __init__(self, embed: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., search: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Selection(_message.Message):
    __slots__ = ("matches", "reason", "log_odds")
    MATCHES_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    LOG_ODDS_FIELD_NUMBER: _ClassVar[int]
    matches: _containers.RepeatedCompositeFieldContainer[Match]
    reason: SelectionReason
    log_odds: float
    def __init__(self, matches: _Optional[_Iterable[_Union[Match, _Mapping]]] = ..., reason: _Optional[_Union[SelectionReason, str]] = ..., log_odds: _Optional[float] = ...) -> None: ...

class Match(_message.Message):
    __slots__ = ("adapter", "similarity", "weight")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    SIMILARITY_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    adapter: _adapter_pb2.Adapter
    similarity: float
    weight: float
    def __init__(self, adapter: _Optional[_Union[_adapter_pb2.Adapter, _Mapping]] = ..., similarity: _Optional[float] = ..., weight: _Optional[float] = ...) -> None: ...

class EmbedPromptsRequest(_message.Message):
    __slots__ = ("prompts",)
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    prompts: _containers.RepeatedCompositeFieldContainer[_prompt_pb2.Prompt]
    def __init__(self, prompts: _Optional[_Iterable[_Union[_prompt_pb2.Prompt, _Mapping]]] = ...) -> None: ...

class Vector(_message.Message):
    __slots__ = ("float32",)
    FLOAT32_FIELD_NUMBER: _ClassVar[int]
    float32: bytes
    def __init__(self, float32: _Optional[bytes] = ...) -> None: ...

class EmbedPromptsResponse(_message.Message):
    __slots__ = ("vectors", "embedder_fingerprint")
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    EMBEDDER_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    vectors: _containers.RepeatedCompositeFieldContainer[Vector]
    embedder_fingerprint: str
    def __init__(self, vectors: _Optional[_Iterable[_Union[Vector, _Mapping]]] = ..., embedder_fingerprint: _Optional[str] = ...) -> None: ...

class ExamplePrompts(_message.Message):
    __slots__ = ("prompts",)
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    prompts: _containers.RepeatedCompositeFieldContainer[_prompt_pb2.Prompt]
    def __init__(self, prompts: _Optional[_Iterable[_Union[_prompt_pb2.Prompt, _Mapping]]] = ...) -> None: ...

class ExampleVectors(_message.Message):
    __slots__ = ("vectors",)
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    vectors: _containers.RepeatedCompositeFieldContainer[Vector]
    def __init__(self, vectors: _Optional[_Iterable[_Union[Vector, _Mapping]]] = ...) -> None: ...

class CreateAdapterRequest(_message.Message):
    __slots__ = ("adapter", "examples", "vectors")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    adapter: _adapter_pb2.Adapter
    examples: ExamplePrompts
    vectors: ExampleVectors
    def __init__(self, adapter: _Optional[_Union[_adapter_pb2.Adapter, _Mapping]] = ..., examples: _Optional[_Union[ExamplePrompts, _Mapping]] = ..., vectors: _Optional[_Union[ExampleVectors, _Mapping]] = ...) -> None: ...

class CreateAdapterResponse(_message.Message):
    __slots__ = ("adapter",)
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    adapter: _adapter_pb2.Adapter
    def __init__(self, adapter: _Optional[_Union[_adapter_pb2.Adapter, _Mapping]] = ...) -> None: ...

class UpdateAdapterRequest(_message.Message):
    __slots__ = ("adapter", "update_mask", "examples", "vectors", "expected_revision")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    UPDATE_MASK_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_REVISION_FIELD_NUMBER: _ClassVar[int]
    adapter: _adapter_pb2.Adapter
    update_mask: _field_mask_pb2.FieldMask
    examples: ExamplePrompts
    vectors: ExampleVectors
    expected_revision: str
    def __init__(self, adapter: _Optional[_Union[_adapter_pb2.Adapter, _Mapping]] = ..., update_mask: _Optional[_Union[_field_mask_pb2.FieldMask, _Mapping]] = ..., examples: _Optional[_Union[ExamplePrompts, _Mapping]] = ..., vectors: _Optional[_Union[ExampleVectors, _Mapping]] = ..., expected_revision: _Optional[str] = ...) -> None: ...

class UpdateAdapterResponse(_message.Message):
    __slots__ = ("adapter",)
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    adapter: _adapter_pb2.Adapter
    def __init__(self, adapter: _Optional[_Union[_adapter_pb2.Adapter, _Mapping]] = ...) -> None: ...

class GetAdapterRequest(_message.Message):
    __slots__ = ("adapter_id", "with_vectors")
    ADAPTER_ID_FIELD_NUMBER: _ClassVar[int]
    WITH_VECTORS_FIELD_NUMBER: _ClassVar[int]
    adapter_id: str
    with_vectors: bool
    def __init__(self, adapter_id: _Optional[str] = ..., with_vectors: bool = ...) -> None: ...

class GetAdapterResponse(_message.Message):
    __slots__ = ("adapter", "vectors", "embedder_fingerprint", "stale")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    EMBEDDER_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    STALE_FIELD_NUMBER: _ClassVar[int]
    adapter: _adapter_pb2.Adapter
    vectors: _containers.RepeatedCompositeFieldContainer[Vector]
    embedder_fingerprint: str
    stale: bool
    def __init__(self, adapter: _Optional[_Union[_adapter_pb2.Adapter, _Mapping]] = ..., vectors: _Optional[_Iterable[_Union[Vector, _Mapping]]] = ..., embedder_fingerprint: _Optional[str] = ..., stale: bool = ...) -> None: ...

class GetCatalogueRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetCatalogueResponse(_message.Message):
    __slots__ = ("catalogue_revision", "embedder_fingerprint", "dimension", "adapter_count", "stale")
    CATALOGUE_REVISION_FIELD_NUMBER: _ClassVar[int]
    EMBEDDER_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_COUNT_FIELD_NUMBER: _ClassVar[int]
    STALE_FIELD_NUMBER: _ClassVar[int]
    catalogue_revision: str
    embedder_fingerprint: str
    dimension: int
    adapter_count: int
    stale: bool
    def __init__(self, catalogue_revision: _Optional[str] = ..., embedder_fingerprint: _Optional[str] = ..., dimension: _Optional[int] = ..., adapter_count: _Optional[int] = ..., stale: bool = ...) -> None: ...

class ListAdaptersRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "base_model", "kind", "tags")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    base_model: str
    kind: str
    tags: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., base_model: _Optional[str] = ..., kind: _Optional[str] = ..., tags: _Optional[_Iterable[str]] = ...) -> None: ...

class ListAdaptersResponse(_message.Message):
    __slots__ = ("adapters", "next_page_token", "total_size", "catalogue_revision", "stale")
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TOTAL_SIZE_FIELD_NUMBER: _ClassVar[int]
    CATALOGUE_REVISION_FIELD_NUMBER: _ClassVar[int]
    STALE_FIELD_NUMBER: _ClassVar[int]
    adapters: _containers.RepeatedCompositeFieldContainer[_adapter_pb2.Adapter]
    next_page_token: str
    total_size: int
    catalogue_revision: str
    stale: bool
    def __init__(self, adapters: _Optional[_Iterable[_Union[_adapter_pb2.Adapter, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., total_size: _Optional[int] = ..., catalogue_revision: _Optional[str] = ..., stale: bool = ...) -> None: ...

class DeleteAdapterRequest(_message.Message):
    __slots__ = ("adapter_id",)
    ADAPTER_ID_FIELD_NUMBER: _ClassVar[int]
    adapter_id: str
    def __init__(self, adapter_id: _Optional[str] = ...) -> None: ...

class DeleteAdapterResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
