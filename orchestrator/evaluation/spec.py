"""What an evaluation job is asked to do: everything needed to repeat it, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pydantic import TypeAdapter

from infra.contract.adapter import ADAPTER_ID_PATTERN, check_adapter_id
from infra.contract.composition import FusionMethod
from infra.contract.errors import InvalidArgumentError
from infra.contract.errors import field as field_path
from infra.contract.generation import MAX_SEED, Decoding
from infra.contract.retrieval import RetrievalOptions

MAX_DATASETS = 1000
MAX_STRATEGIES = 64


class AnswerStrategy(StrEnum):
    """How an answer is composed. `oracle` applies the adapter known to be right, and exists in evaluation only."""

    BASE = "base"
    SELECTION = "selection"
    MIXTURE = "mixture"
    FUSION = "fusion"
    ORACLE = "oracle"

    @property
    def retrieves(self) -> bool:
        """Whether adapters are looked up for each prompt."""
        return self not in (AnswerStrategy.BASE, AnswerStrategy.ORACLE)


class Protocol(StrEnum):
    """How an episode becomes samples.

    `step`: each step is asked with the true actions before it. `sequence`: one answer holds the whole episode.
    `episode`: each step is asked with the model's own actions before it.
    """

    STEP = "step"
    SEQUENCE = "sequence"
    EPISODE = "episode"


@dataclass(frozen=True)
class DatasetSpec:
    """One JSONL file. `name` is its name in the report; `adapter_id` (may be empty) is the adapter trained for it.

    A non-empty `kind` restricts retrieval to adapters of that kind, and groups the dataset in the report.
    """

    name: str
    uri: str
    adapter_id: str = ""
    kind: str = ""

    def __post_init__(self) -> None:
        _check_name(self.name)
        if not self.uri:
            raise InvalidArgumentError("uri", f"dataset {self.name!r} names no file; give its JSONL file")
        if self.adapter_id:
            check_adapter_id(self.adapter_id)


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
        if self.exclude_own_adapter and not self.strategy.retrieves:
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

    `image_root` is the folder that image paths may also be relative to; empty: none.
    """

    datasets: tuple[DatasetSpec, ...]
    strategies: tuple[EvaluatedStrategy, ...]
    protocol: Protocol = Protocol.STEP
    retrieval: RetrievalOptions = field(default_factory=RetrievalOptions)
    decoding: Decoding = field(default_factory=Decoding)
    max_episodes: int | None = None
    seed: int = 0
    shard_size: int | None = None
    image_root: str = ""

    def __post_init__(self) -> None:
        if not self.datasets:
            raise InvalidArgumentError("datasets", "a job needs at least one dataset")
        if not self.strategies:
            raise InvalidArgumentError("strategies", "a job needs at least one strategy")
        _check_count("datasets", len(self.datasets), MAX_DATASETS)
        _check_count("strategies", len(self.strategies), MAX_STRATEGIES)
        _check_unique("datasets", [dataset.name for dataset in self.datasets])
        _check_unique("strategies", [strategy.label for strategy in self.strategies])
        if self.max_episodes is not None and self.max_episodes < 1:
            raise InvalidArgumentError("max_episodes", f"must be at least 1, got {self.max_episodes}")
        if self.shard_size is not None and self.shard_size < 1:
            raise InvalidArgumentError("shard_size", f"must be at least 1, got {self.shard_size}")
        if not 0 <= self.seed <= MAX_SEED:
            raise InvalidArgumentError("seed", f"must be in [0, 2^64), got {self.seed}")
        self._check_true_adapters()

    def _check_true_adapters(self) -> None:
        for strategy in self.strategies:
            if strategy.strategy is not AnswerStrategy.ORACLE and not strategy.exclude_own_adapter:
                continue
            for index, dataset in enumerate(self.datasets):
                if not dataset.adapter_id:
                    raise InvalidArgumentError(
                        f"datasets[{index}].adapter_id",
                        f"strategy {strategy.label!r} must know the adapter trained for dataset {dataset.name!r}; "
                        "name it, or leave the strategy out",
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


def _check_unique(field_name: str, names: Sequence[str]) -> None:
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name in seen:
            with field_path(f"{field_name}[{index}]"):
                raise InvalidArgumentError("name", f"{name!r} is used twice; names in a report must be unique")
        seen.add(name)
