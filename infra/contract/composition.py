"""Which adapters answer a prompt, and how they are combined: Base | Mixture | Fusion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from infra.contract.adapter import check_adapter_id
from infra.contract.errors import InvalidArgumentError, field


@dataclass(frozen=True)
class WeightedAdapter:
    """An adapter's share in a composition. `weight` is finite and not negative; an empty revision is the newest."""

    adapter_id: str
    weight: float
    revision: str = ""

    def __post_init__(self) -> None:
        check_adapter_id(self.adapter_id)
        if not math.isfinite(self.weight) or self.weight < 0:
            raise InvalidArgumentError("weight", f"must be finite and not negative, got {self.weight}")


class FusionMethod(StrEnum):
    """How the parameters of several adapters become one adapter's."""

    LINEAR = "linear"
    CONCAT = "concat"
    SVD = "svd"
    TIES = "ties"
    DARE = "dare"


@dataclass(frozen=True)
class Base:
    """The base model alone."""


@dataclass(frozen=True)
class Mixture:
    """Adapters weighted at the output of every adapted layer (LoraRetriever, eq. 4). Selection is a mixture of one."""

    adapters: tuple[WeightedAdapter, ...]

    def __post_init__(self) -> None:
        _check_adapters(self.adapters)


@dataclass(frozen=True)
class Fusion:
    """Adapters merged in their parameters before decoding."""

    adapters: tuple[WeightedAdapter, ...]
    method: FusionMethod = FusionMethod.LINEAR

    def __post_init__(self) -> None:
        _check_adapters(self.adapters)


Composition = Base | Mixture | Fusion


def _check_adapters(adapters: Sequence[WeightedAdapter]) -> None:
    if not adapters:
        raise InvalidArgumentError("adapters", "a mixture or fusion needs at least one adapter; leave it out for base")
    seen: set[str] = set()
    for index, adapter in enumerate(adapters):
        with field(f"adapters[{index}]"):
            if adapter.adapter_id in seen:
                raise InvalidArgumentError("adapter_id", f"{adapter.adapter_id!r} is named twice; add its weights up")
        seen.add(adapter.adapter_id)
