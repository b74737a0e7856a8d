import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from loraretriever.v1 import adapter_pb2 as _adapter_pb2
from loraretriever.v1 import generation_service_pb2 as _generation_service_pb2
from loraretriever.v1 import prompt_pb2 as _prompt_pb2
from loraretriever.v1 import retrieval_service_pb2 as _retrieval_service_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AnswerStrategy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ANSWER_STRATEGY_UNSPECIFIED: _ClassVar[AnswerStrategy]
    ANSWER_STRATEGY_BASE: _ClassVar[AnswerStrategy]
    ANSWER_STRATEGY_SELECTION: _ClassVar[AnswerStrategy]
    ANSWER_STRATEGY_MIXTURE: _ClassVar[AnswerStrategy]
    ANSWER_STRATEGY_FUSION: _ClassVar[AnswerStrategy]
    ANSWER_STRATEGY_ORACLE: _ClassVar[AnswerStrategy]
    ANSWER_STRATEGY_UNIFORM_ALL: _ClassVar[AnswerStrategy]
    ANSWER_STRATEGY_RANDOM_K: _ClassVar[AnswerStrategy]

class EvaluationProtocol(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EVALUATION_PROTOCOL_UNSPECIFIED: _ClassVar[EvaluationProtocol]
    EVALUATION_PROTOCOL_SEQUENCE: _ClassVar[EvaluationProtocol]
    EVALUATION_PROTOCOL_STEP: _ClassVar[EvaluationProtocol]
    EVALUATION_PROTOCOL_EPISODE: _ClassVar[EvaluationProtocol]

class EvaluationState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EVALUATION_STATE_UNSPECIFIED: _ClassVar[EvaluationState]
    EVALUATION_STATE_QUEUED: _ClassVar[EvaluationState]
    EVALUATION_STATE_RUNNING: _ClassVar[EvaluationState]
    EVALUATION_STATE_SUCCEEDED: _ClassVar[EvaluationState]
    EVALUATION_STATE_FAILED: _ClassVar[EvaluationState]
    EVALUATION_STATE_CANCELLED: _ClassVar[EvaluationState]
ANSWER_STRATEGY_UNSPECIFIED: AnswerStrategy
ANSWER_STRATEGY_BASE: AnswerStrategy
ANSWER_STRATEGY_SELECTION: AnswerStrategy
ANSWER_STRATEGY_MIXTURE: AnswerStrategy
ANSWER_STRATEGY_FUSION: AnswerStrategy
ANSWER_STRATEGY_ORACLE: AnswerStrategy
ANSWER_STRATEGY_UNIFORM_ALL: AnswerStrategy
ANSWER_STRATEGY_RANDOM_K: AnswerStrategy
EVALUATION_PROTOCOL_UNSPECIFIED: EvaluationProtocol
EVALUATION_PROTOCOL_SEQUENCE: EvaluationProtocol
EVALUATION_PROTOCOL_STEP: EvaluationProtocol
EVALUATION_PROTOCOL_EPISODE: EvaluationProtocol
EVALUATION_STATE_UNSPECIFIED: EvaluationState
EVALUATION_STATE_QUEUED: EvaluationState
EVALUATION_STATE_RUNNING: EvaluationState
EVALUATION_STATE_SUCCEEDED: EvaluationState
EVALUATION_STATE_FAILED: EvaluationState
EVALUATION_STATE_CANCELLED: EvaluationState

class AnswerRequest(_message.Message):
    __slots__ = ("prompt", "retrieval", "strategy", "fusion_method", "decoding", "adapter_id", "adapters")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    RETRIEVAL_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    FUSION_METHOD_FIELD_NUMBER: _ClassVar[int]
    DECODING_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_ID_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    prompt: _prompt_pb2.Prompt
    retrieval: _retrieval_service_pb2.RetrievalOptions
    strategy: AnswerStrategy
    fusion_method: _generation_service_pb2.FusionMethod
    decoding: _generation_service_pb2.Decoding
    adapter_id: str
    adapters: _containers.RepeatedCompositeFieldContainer[_adapter_pb2.WeightedAdapter]
    def __init__(self, prompt: _Optional[_Union[_prompt_pb2.Prompt, _Mapping]] = ..., retrieval: _Optional[_Union[_retrieval_service_pb2.RetrievalOptions, _Mapping]] = ..., strategy: _Optional[_Union[AnswerStrategy, str]] = ..., fusion_method: _Optional[_Union[_generation_service_pb2.FusionMethod, str]] = ..., decoding: _Optional[_Union[_generation_service_pb2.Decoding, _Mapping]] = ..., adapter_id: _Optional[str] = ..., adapters: _Optional[_Iterable[_Union[_adapter_pb2.WeightedAdapter, _Mapping]]] = ...) -> None: ...

class AnswerResponse(_message.Message):
    __slots__ = ("answer", "selection", "catalogue_revision", "retrieval_time", "retrieval_timings", "stale")
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    SELECTION_FIELD_NUMBER: _ClassVar[int]
    CATALOGUE_REVISION_FIELD_NUMBER: _ClassVar[int]
    RETRIEVAL_TIME_FIELD_NUMBER: _ClassVar[int]
    RETRIEVAL_TIMINGS_FIELD_NUMBER: _ClassVar[int]
    STALE_FIELD_NUMBER: _ClassVar[int]
    answer: _generation_service_pb2.GenerateResponse
    selection: _retrieval_service_pb2.Selection
    catalogue_revision: str
    retrieval_time: _duration_pb2.Duration
    retrieval_timings: _retrieval_service_pb2.RetrievalTimings
    stale: bool
    def __init__(self, answer: _Optional[_Union[_generation_service_pb2.GenerateResponse, _Mapping]] = ..., selection: _Optional[_Union[_retrieval_service_pb2.Selection, _Mapping]] = ..., catalogue_revision: _Optional[str] = ..., retrieval_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., retrieval_timings: _Optional[_Union[_retrieval_service_pb2.RetrievalTimings, _Mapping]] = ..., stale: bool = ...) -> None: ...

class StreamAnswerRequest(_message.Message):
    __slots__ = ("prompt", "retrieval", "strategy", "fusion_method", "decoding", "adapter_id", "adapters")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    RETRIEVAL_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    FUSION_METHOD_FIELD_NUMBER: _ClassVar[int]
    DECODING_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_ID_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    prompt: _prompt_pb2.Prompt
    retrieval: _retrieval_service_pb2.RetrievalOptions
    strategy: AnswerStrategy
    fusion_method: _generation_service_pb2.FusionMethod
    decoding: _generation_service_pb2.Decoding
    adapter_id: str
    adapters: _containers.RepeatedCompositeFieldContainer[_adapter_pb2.WeightedAdapter]
    def __init__(self, prompt: _Optional[_Union[_prompt_pb2.Prompt, _Mapping]] = ..., retrieval: _Optional[_Union[_retrieval_service_pb2.RetrievalOptions, _Mapping]] = ..., strategy: _Optional[_Union[AnswerStrategy, str]] = ..., fusion_method: _Optional[_Union[_generation_service_pb2.FusionMethod, str]] = ..., decoding: _Optional[_Union[_generation_service_pb2.Decoding, _Mapping]] = ..., adapter_id: _Optional[str] = ..., adapters: _Optional[_Iterable[_Union[_adapter_pb2.WeightedAdapter, _Mapping]]] = ...) -> None: ...

class StreamAnswerResponse(_message.Message):
    __slots__ = ("selection", "delta", "final")
    SELECTION_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    selection: _retrieval_service_pb2.Selection
    delta: str
    final: AnswerResponse
    def __init__(self, selection: _Optional[_Union[_retrieval_service_pb2.Selection, _Mapping]] = ..., delta: _Optional[str] = ..., final: _Optional[_Union[AnswerResponse, _Mapping]] = ...) -> None: ...

class Dataset(_message.Message):
    __slots__ = ("name", "uri", "adapter_id", "kind", "adapter_field", "adapter_of", "sha256")
    class AdapterOfEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    URI_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_OF_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    name: str
    uri: str
    adapter_id: str
    kind: str
    adapter_field: str
    adapter_of: _containers.ScalarMap[str, str]
    sha256: str
    def __init__(self, name: _Optional[str] = ..., uri: _Optional[str] = ..., adapter_id: _Optional[str] = ..., kind: _Optional[str] = ..., adapter_field: _Optional[str] = ..., adapter_of: _Optional[_Mapping[str, str]] = ..., sha256: _Optional[str] = ...) -> None: ...

class EvaluatedStrategy(_message.Message):
    __slots__ = ("name", "strategy", "fusion_method", "exclude_own_adapter")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    FUSION_METHOD_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_OWN_ADAPTER_FIELD_NUMBER: _ClassVar[int]
    name: str
    strategy: AnswerStrategy
    fusion_method: _generation_service_pb2.FusionMethod
    exclude_own_adapter: bool
    def __init__(self, name: _Optional[str] = ..., strategy: _Optional[_Union[AnswerStrategy, str]] = ..., fusion_method: _Optional[_Union[_generation_service_pb2.FusionMethod, str]] = ..., exclude_own_adapter: bool = ...) -> None: ...

class EvaluationSpec(_message.Message):
    __slots__ = ("datasets", "strategies", "protocol", "retrieval", "decoding", "max_episodes", "seed", "shard_size", "image_root", "legacy_threshold", "point_tolerance_px", "first_episodes", "max_images")
    DATASETS_FIELD_NUMBER: _ClassVar[int]
    STRATEGIES_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    RETRIEVAL_FIELD_NUMBER: _ClassVar[int]
    DECODING_FIELD_NUMBER: _ClassVar[int]
    MAX_EPISODES_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SHARD_SIZE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_ROOT_FIELD_NUMBER: _ClassVar[int]
    LEGACY_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    POINT_TOLERANCE_PX_FIELD_NUMBER: _ClassVar[int]
    FIRST_EPISODES_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGES_FIELD_NUMBER: _ClassVar[int]
    datasets: _containers.RepeatedCompositeFieldContainer[Dataset]
    strategies: _containers.RepeatedCompositeFieldContainer[EvaluatedStrategy]
    protocol: EvaluationProtocol
    retrieval: _retrieval_service_pb2.RetrievalOptions
    decoding: _generation_service_pb2.Decoding
    max_episodes: int
    seed: int
    shard_size: int
    image_root: str
    legacy_threshold: float
    point_tolerance_px: float
    first_episodes: bool
    max_images: int
    def __init__(self, datasets: _Optional[_Iterable[_Union[Dataset, _Mapping]]] = ..., strategies: _Optional[_Iterable[_Union[EvaluatedStrategy, _Mapping]]] = ..., protocol: _Optional[_Union[EvaluationProtocol, str]] = ..., retrieval: _Optional[_Union[_retrieval_service_pb2.RetrievalOptions, _Mapping]] = ..., decoding: _Optional[_Union[_generation_service_pb2.Decoding, _Mapping]] = ..., max_episodes: _Optional[int] = ..., seed: _Optional[int] = ..., shard_size: _Optional[int] = ..., image_root: _Optional[str] = ..., legacy_threshold: _Optional[float] = ..., point_tolerance_px: _Optional[float] = ..., first_episodes: bool = ..., max_images: _Optional[int] = ...) -> None: ...

class Evaluation(_message.Message):
    __slots__ = ("evaluation_id", "spec", "state", "total_samples", "done_samples", "failed_samples", "bad_rows", "create_time", "end_time", "error", "output_uri", "stalled")
    EVALUATION_ID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    DONE_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    FAILED_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    BAD_ROWS_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_URI_FIELD_NUMBER: _ClassVar[int]
    STALLED_FIELD_NUMBER: _ClassVar[int]
    evaluation_id: str
    spec: EvaluationSpec
    state: EvaluationState
    total_samples: int
    done_samples: int
    failed_samples: int
    bad_rows: int
    create_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    error: str
    output_uri: str
    stalled: str
    def __init__(self, evaluation_id: _Optional[str] = ..., spec: _Optional[_Union[EvaluationSpec, _Mapping]] = ..., state: _Optional[_Union[EvaluationState, str]] = ..., total_samples: _Optional[int] = ..., done_samples: _Optional[int] = ..., failed_samples: _Optional[int] = ..., bad_rows: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., error: _Optional[str] = ..., output_uri: _Optional[str] = ..., stalled: _Optional[str] = ...) -> None: ...

class CreateEvaluationRequest(_message.Message):
    __slots__ = ("spec", "request_id")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    spec: EvaluationSpec
    request_id: str
    def __init__(self, spec: _Optional[_Union[EvaluationSpec, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class CreateEvaluationResponse(_message.Message):
    __slots__ = ("evaluation",)
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    evaluation: Evaluation
    def __init__(self, evaluation: _Optional[_Union[Evaluation, _Mapping]] = ...) -> None: ...

class GetEvaluationRequest(_message.Message):
    __slots__ = ("evaluation_id",)
    EVALUATION_ID_FIELD_NUMBER: _ClassVar[int]
    evaluation_id: str
    def __init__(self, evaluation_id: _Optional[str] = ...) -> None: ...

class GetEvaluationResponse(_message.Message):
    __slots__ = ("evaluation",)
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    evaluation: Evaluation
    def __init__(self, evaluation: _Optional[_Union[Evaluation, _Mapping]] = ...) -> None: ...

class ListEvaluationsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListEvaluationsResponse(_message.Message):
    __slots__ = ("evaluations", "next_page_token")
    EVALUATIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    evaluations: _containers.RepeatedCompositeFieldContainer[Evaluation]
    next_page_token: str
    def __init__(self, evaluations: _Optional[_Iterable[_Union[Evaluation, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class WatchEvaluationRequest(_message.Message):
    __slots__ = ("evaluation_id",)
    EVALUATION_ID_FIELD_NUMBER: _ClassVar[int]
    evaluation_id: str
    def __init__(self, evaluation_id: _Optional[str] = ...) -> None: ...

class WatchEvaluationResponse(_message.Message):
    __slots__ = ("evaluation",)
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    evaluation: Evaluation
    def __init__(self, evaluation: _Optional[_Union[Evaluation, _Mapping]] = ...) -> None: ...

class CancelEvaluationRequest(_message.Message):
    __slots__ = ("evaluation_id",)
    EVALUATION_ID_FIELD_NUMBER: _ClassVar[int]
    evaluation_id: str
    def __init__(self, evaluation_id: _Optional[str] = ...) -> None: ...

class CancelEvaluationResponse(_message.Message):
    __slots__ = ("evaluation",)
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    evaluation: Evaluation
    def __init__(self, evaluation: _Optional[_Union[Evaluation, _Mapping]] = ...) -> None: ...

class GetReportRequest(_message.Message):
    __slots__ = ("evaluation_id",)
    EVALUATION_ID_FIELD_NUMBER: _ClassVar[int]
    evaluation_id: str
    def __init__(self, evaluation_id: _Optional[str] = ...) -> None: ...

class GetReportResponse(_message.Message):
    __slots__ = ("summary_json", "summary_markdown", "output_uri")
    SUMMARY_JSON_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_MARKDOWN_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_URI_FIELD_NUMBER: _ClassVar[int]
    summary_json: str
    summary_markdown: str
    output_uri: str
    def __init__(self, summary_json: _Optional[str] = ..., summary_markdown: _Optional[str] = ..., output_uri: _Optional[str] = ...) -> None: ...

class RetryEvaluationRequest(_message.Message):
    __slots__ = ("evaluation_id",)
    EVALUATION_ID_FIELD_NUMBER: _ClassVar[int]
    evaluation_id: str
    def __init__(self, evaluation_id: _Optional[str] = ...) -> None: ...

class RetryEvaluationResponse(_message.Message):
    __slots__ = ("evaluation",)
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    evaluation: Evaluation
    def __init__(self, evaluation: _Optional[_Union[Evaluation, _Mapping]] = ...) -> None: ...

class DeleteEvaluationRequest(_message.Message):
    __slots__ = ("evaluation_id",)
    EVALUATION_ID_FIELD_NUMBER: _ClassVar[int]
    evaluation_id: str
    def __init__(self, evaluation_id: _Optional[str] = ...) -> None: ...

class DeleteEvaluationResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
