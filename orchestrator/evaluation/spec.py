"""The specification of an evaluation job: everything needed to repeat it, and nothing else."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pydantic import TypeAdapter

from infra.contract.adapter import ADAPTER_ID_PATTERN, check_adapter_id
from infra.contract.composition import FusionMethod
from infra.contract.errors import InvalidArgumentError
from infra.contract.generation import MAX_SEED, Decoding
from infra.contract.retrieval import RetrievalOptions
from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.evaluation.actions import POINT_TOLERANCE_PX
from orchestrator.evaluation.metrics.legacy import LEGACY_THRESHOLD

MAX_DATASETS = 1000
MAX_STRATEGIES = 64
MAX_SHARD_SIZE = 1000
_SHA256 = re.compile(r"[0-9a-f]{64}")


class PromptProtocol(StrEnum):
    """How an episode becomes samples.

    step: one sample per step, whose prompt has the true actions before it.
    sequence: one sample per episode, whose answer has all actions.
    episode: one sample per step, whose prompt has the model's own answers to the steps before it.
    """

    STEP = "step"
    SEQUENCE = "sequence"
    EPISODE = "episode"


@dataclass(frozen=True)
class DatasetSpec:
    """One JSONL file, or a folder or glob pattern of files.

    Attributes:
        name: the dataset's name in the report; empty: each file's own name.
        uri: path of a file, a folder ending in "/", or a glob pattern.
        adapter_id: the adapter trained for the data; empty: not known. For a folder or pattern it may be a template
            such as "app_lora_{}", where {} is replaced by each file's name.
        kind: restricts retrieval to adapters of this kind and groups the dataset in the report; empty: neither.
        adapter_field: the field of a row that names its adapter, where rows differ.
        adapter_of: pairs that map values of `adapter_field` to adapter ids; empty: the value is the id.
        sha256: the required SHA-256 of the file. Accepted jobs always have it.
    """

    name: str
    uri: str
    adapter_id: str = ""
    kind: str = ""
    adapter_field: str = ""
    adapter_of: tuple[tuple[str, str], ...] = ()
    sha256: str = ""

    def __post_init__(self) -> None:
        if not self.uri:
            raise InvalidArgumentError("uri", f"dataset {self.name!r} has no file; give the path of a JSONL file")
        if any("\ud800" <= character <= "\udfff" for character in self.uri):
            raise InvalidArgumentError("uri", f"{self.uri!r} is not valid UTF-8; rename the file or its folder")
        if self.name or not self.is_pattern:
            _check_name(self.name)
        if self.adapter_id:
            check_adapter_id(self.adapter_id.replace("{}", "x") if self.is_pattern else self.adapter_id)
        if self.adapter_id and self.adapter_field:
            raise InvalidArgumentError(
                "adapter_field",
                f"dataset {self.name!r} already has adapter_id {self.adapter_id!r}; give only one of the two",
            )
        for value, adapter_id in self.adapter_of:
            check_adapter_id(adapter_id, f"adapter_of[{value!r}]")
        if self.sha256 and not _SHA256.fullmatch(self.sha256):
            raise InvalidArgumentError("sha256", f"must be 64 lower-case hexadecimal digits, got {self.sha256[:70]!r}")

    @property
    def is_pattern(self) -> bool:
        """Whether `uri` is a glob pattern or a folder ending in a slash."""
        return self.uri.endswith("/") or any(character in self.uri for character in "*?[")

    @property
    def names_adapter(self) -> bool:
        """Whether the adapter trained for each row is known."""
        return bool(self.adapter_id or self.adapter_field)


@dataclass(frozen=True)
class EvaluatedStrategy:
    """One of the strategies that a job compares.

    Attributes:
        strategy: how an answer is composed.
        fusion_method: used by `fusion` only.
        exclude_own_adapter: hide the dataset's own adapter from retrieval, the paper's out-of-domain setting.
        name: the label in keys, records and reports; empty: derived (see `label`).
    """

    strategy: AnswerStrategy
    fusion_method: FusionMethod = FusionMethod.AUTO
    exclude_own_adapter: bool = False
    name: str = ""

    def __post_init__(self) -> None:
        if self.name:
            _check_name(self.name)
        if self.exclude_own_adapter and not (self.strategy.retrieves or self.strategy.ignores_prompt):
            raise InvalidArgumentError(
                "exclude_own_adapter", f"{self.strategy.value} does not retrieve adapters, so there is none to exclude"
            )

    @property
    def label(self) -> str:
        """The name in reports: `name`, or one derived from strategy, fusion method and domain."""
        names_method = self.strategy is AnswerStrategy.FUSION and self.fusion_method is not FusionMethod.AUTO
        method = f"-{self.fusion_method.value}" if names_method else ""
        domain = "-out-of-domain" if self.exclude_own_adapter else ""
        return self.name or f"{self.strategy.value}{method}{domain}"


@dataclass(frozen=True)
class EvaluationSpec:
    """An evaluation job.

    Attributes:
        datasets: at most MAX_DATASETS, with unique names.
        strategies: at most MAX_STRATEGIES, with unique labels.
        protocol: how episodes become samples.
        retrieval: how adapters are retrieved and weighted.
        decoding: how answers are decoded.
        max_episodes: episodes per dataset, chosen by `seed`; None: all.
        seed: selects episodes and draws the adapters of `random-k`.
        shard_size: samples per shard; None: the server's default.
        image_root: an additional folder for relative image paths; empty: none.
        legacy_threshold: similarity in [0, 1] above which an answer is correct under the `legacy` metric.
        point_tolerance_px: distance in pixels up to which points are equal under the `action` metric.
    """

    datasets: tuple[DatasetSpec, ...]
    strategies: tuple[EvaluatedStrategy, ...]
    protocol: PromptProtocol = PromptProtocol.STEP
    retrieval: RetrievalOptions = field(default_factory=RetrievalOptions)
    decoding: Decoding = field(default_factory=Decoding)
    max_episodes: int | None = None
    seed: int = 0
    shard_size: int | None = None
    image_root: str = ""
    legacy_threshold: float = LEGACY_THRESHOLD
    point_tolerance_px: float = POINT_TOLERANCE_PX

    def __post_init__(self) -> None:
        if not self.datasets:
            raise InvalidArgumentError("datasets", "a job needs at least one dataset")
        if not self.strategies:
            raise InvalidArgumentError("strategies", "a job needs at least one strategy")
        _check_count("datasets", len(self.datasets), MAX_DATASETS)
        _check_count("strategies", len(self.strategies), MAX_STRATEGIES)
        _check_unique(
            "datasets", [dataset.name for dataset in self.datasets], [dataset.uri for dataset in self.datasets]
        )
        _check_unique("strategies", [strategy.label for strategy in self.strategies])
        if self.max_episodes is not None and self.max_episodes < 1:
            raise InvalidArgumentError("max_episodes", f"must be at least 1, got {self.max_episodes}")
        if self.shard_size is not None and not 1 <= self.shard_size <= MAX_SHARD_SIZE:
            raise InvalidArgumentError("shard_size", f"must be in [1, {MAX_SHARD_SIZE}], got {self.shard_size}")
        if not 0 <= self.seed <= MAX_SEED:
            raise InvalidArgumentError("seed", f"must be in [0, 2^64), got {self.seed}")
        if not 0 <= self.legacy_threshold <= 1:
            raise InvalidArgumentError(
                "legacy_threshold", f"must be a similarity in [0, 1], got {self.legacy_threshold:g}"
            )
        if not 0 <= self.point_tolerance_px < math.inf:
            raise InvalidArgumentError(
                "point_tolerance_px", f"must be 0 pixels or more, got {self.point_tolerance_px:g}"
            )
        self._check_true_adapters()

    def _check_true_adapters(self) -> None:
        for strategy in self.strategies:
            if strategy.strategy is not AnswerStrategy.ORACLE and not strategy.exclude_own_adapter:
                continue
            for index, dataset in enumerate(self.datasets):
                if not dataset.names_adapter:
                    raise InvalidArgumentError(
                        f"datasets[{index}].adapter_id",
                        f"strategy {strategy.label!r} needs the adapter trained for dataset {dataset.name!r}; "
                        "name it for the dataset, or for each row where rows differ, or leave the strategy out",
                    )

    def to_json(self) -> dict[str, Any]:
        """Return the spec as JSON values."""
        dumped: dict[str, Any] = _ADAPTER.dump_python(self, mode="json")
        return dumped

    @classmethod
    def from_json(cls, data: Any) -> EvaluationSpec:
        """Parse the output of `to_json`."""
        return _ADAPTER.validate_python(data)


_ADAPTER = TypeAdapter(EvaluationSpec)


def _check_name(name: str) -> None:
    if not ADAPTER_ID_PATTERN.fullmatch(name):
        raise InvalidArgumentError(
            "name",
            f"{name[:40]!r} is not a valid name: use 1 to 128 letters, digits, '.', '_' or '-', "
            "starting with a letter or digit",
        )


def _check_count(field_name: str, count: int, limit: int) -> None:
    if count > limit:
        raise InvalidArgumentError(field_name, f"a job may have at most {limit}, got {count}; split the job")


def _check_unique(field_name: str, names: Sequence[str], files: Sequence[str] = ()) -> None:
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        if first.setdefault(name, index) != index:
            both_files = f", for {files[first[name]]} and for {files[index]}" if files else ""
            raise InvalidArgumentError(
                f"{field_name}[{index}].name",
                f"{name!r} is used twice{both_files}; names in a report must be unique: rename one of them",
            )
