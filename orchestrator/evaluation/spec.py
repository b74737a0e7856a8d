"""What an evaluation job is asked to do: everything needed to repeat it, and nothing else."""

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

    `step`: each step is asked with the true actions before it. `sequence`: one answer holds the whole episode.
    `episode`: each step is asked with the model's own actions before it.
    """

    STEP = "step"
    SEQUENCE = "sequence"
    EPISODE = "episode"


@dataclass(frozen=True)
class DatasetSpec:
    """One JSONL file, or a folder or pattern of them. `name` is its name in the report (empty: the files' names).

    The adapter trained for the data is `adapter_id` (empty: not known; of a folder or pattern it may be a form such as
    "app_lora_{}", with {} for each file's name), or where rows differ what their field `adapter_field` says, by way of
    `adapter_of` where that is not empty. A non-empty `kind` restricts retrieval to
    adapters of that kind, and groups the dataset in the report. `sha256` is what the file's bytes must have; a job that
    was accepted always names it.
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
            raise InvalidArgumentError("uri", f"dataset {self.name!r} names no file; give its JSONL file")
        if any("\ud800" <= character <= "\udfff" for character in self.uri):
            raise InvalidArgumentError("uri", f"{self.uri!r} is no path in UTF-8; rename the file or its folder")
        if self.name or not self.is_pattern:
            _check_name(self.name)
        if self.adapter_id:
            check_adapter_id(self.adapter_id.replace("{}", "x") if self.is_pattern else self.adapter_id)
        if self.adapter_id and self.adapter_field:
            raise InvalidArgumentError(
                "adapter_field", f"dataset {self.name!r} has adapter_id {self.adapter_id!r} already; give one of them"
            )
        for value, adapter_id in self.adapter_of:
            check_adapter_id(adapter_id, f"adapter_of[{value!r}]")
        if self.sha256 and not _SHA256.fullmatch(self.sha256):
            raise InvalidArgumentError(
                "sha256", f"must be 64 hexadecimal digits in lower case, got {self.sha256[:70]!r}"
            )

    @property
    def is_pattern(self) -> bool:
        """Whether `uri` is a pattern, or a folder written with a slash at its end."""
        return self.uri.endswith("/") or any(character in self.uri for character in "*?[")

    @property
    def names_adapter(self) -> bool:
        """Whether the adapter that was trained for each row is known."""
        return bool(self.adapter_id or self.adapter_field)


@dataclass(frozen=True)
class EvaluatedStrategy:
    """One way to answer, of those a job compares. `fusion_method` matters to fusion alone.

    `exclude_own_adapter` hides the dataset's own adapter from retrieval: the paper's out-of-domain setting. An empty
    `name` is derived; `label` is the name that keys, records and reports carry.
    """

    strategy: AnswerStrategy
    fusion_method: FusionMethod = FusionMethod.LINEAR
    exclude_own_adapter: bool = False
    name: str = ""

    def __post_init__(self) -> None:
        if self.name:
            _check_name(self.name)
        if self.exclude_own_adapter and not (self.strategy.retrieves or self.strategy.ignores_prompt):
            raise InvalidArgumentError(
                "exclude_own_adapter", f"{self.strategy.value} retrieves nothing, so there is no adapter to exclude"
            )

    @property
    def label(self) -> str:
        """The name in the report: `name`, or one made of the strategy, the fusion method and the domain."""
        method = f"-{self.fusion_method.value}" if self.strategy is AnswerStrategy.FUSION else ""
        domain = "-out-of-domain" if self.exclude_own_adapter else ""
        return self.name or f"{self.strategy.value}{method}{domain}"


@dataclass(frozen=True)
class EvaluationSpec:
    """An evaluation job. `max_episodes` (a dataset, chosen by `seed`) and `shard_size` None: all, the server's default.

    `seed` also draws the adapters of `random-k`. `image_root` is the folder that image paths may also be relative to;
    empty: none. The report calls an answer right under `legacy` strictly above `legacy_threshold`, a similarity in
    [0, 1], and under `action` where points are within `point_tolerance_px`.
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
        _check_unique("datasets", [each.name for each in self.datasets], [each.uri for each in self.datasets])
        _check_unique("strategies", [strategy.label for strategy in self.strategies])
        if self.max_episodes is not None and self.max_episodes < 1:
            raise InvalidArgumentError("max_episodes", f"must be at least 1, got {self.max_episodes}")
        if self.shard_size is not None and not 1 <= self.shard_size <= MAX_SHARD_SIZE:
            raise InvalidArgumentError("shard_size", f"must be in [1, {MAX_SHARD_SIZE}], got {self.shard_size}")
        if not 0 <= self.seed <= MAX_SEED:
            raise InvalidArgumentError("seed", f"must be in [0, 2^64), got {self.seed}")
        if not 0 <= self.legacy_threshold <= 1:
            raise InvalidArgumentError("legacy_threshold", f"a similarity in [0, 1], got {self.legacy_threshold:g}")
        if not 0 <= self.point_tolerance_px < math.inf:
            raise InvalidArgumentError("point_tolerance_px", f"pixels, 0 or more, got {self.point_tolerance_px:g}")
        self._check_true_adapters()

    def _check_true_adapters(self) -> None:
        for strategy in self.strategies:
            if strategy.strategy is not AnswerStrategy.ORACLE and not strategy.exclude_own_adapter:
                continue
            for index, dataset in enumerate(self.datasets):
                if not dataset.names_adapter:
                    raise InvalidArgumentError(
                        f"datasets[{index}].adapter_id",
                        f"strategy {strategy.label!r} must know the adapter trained for dataset {dataset.name!r}; "
                        "name it (adapter_id, or adapter_field where rows differ), or leave the strategy out",
                    )

    def to_json(self) -> dict[str, Any]:
        """Return the job as JSON values."""
        dumped: dict[str, Any] = _ADAPTER.dump_python(self, mode="json")
        return dumped

    @classmethod
    def from_json(cls, data: Any) -> EvaluationSpec:
        """Return the job that `to_json` described."""
        return _ADAPTER.validate_python(data)


_ADAPTER = TypeAdapter(EvaluationSpec)


def _check_name(name: str) -> None:
    if not ADAPTER_ID_PATTERN.fullmatch(name):
        raise InvalidArgumentError(
            "name", f"{name[:40]!r} is no name: 1 to 128 letters, digits, '.', '_' or '-', a letter or digit first"
        )


def _check_count(field_name: str, count: int, most: int) -> None:
    if count > most:
        raise InvalidArgumentError(field_name, f"a job may have at most {most}, got {count}; split it up")


def _check_unique(field_name: str, names: Sequence[str], files: Sequence[str] = ()) -> None:
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        if first.setdefault(name, index) != index:
            both = f", for {files[first[name]]} and for {files[index]}" if files else ""
            raise InvalidArgumentError(
                f"{field_name}[{index}].name",
                f"{name!r} is used twice{both}; names in a report must be unique: give one of them another",
            )
