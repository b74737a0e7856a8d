"""Which adapters answer a prompt, and how they are combined: Base | Mixture | Fusion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from infra.contract.adapter import check_adapter_id
from infra.contract.errors import InvalidArgumentError, field_path


@dataclass(frozen=True)
class WeightedAdapter:
    """An adapter's share in a composition. `weight` is finite and non-negative; an empty revision is the newest."""

    adapter_id: str
    weight: float
    revision: str = ""

    def __post_init__(self) -> None:
        check_adapter_id(self.adapter_id)
        if not math.isfinite(self.weight) or self.weight < 0:
            raise InvalidArgumentError("weight", f"must be finite and not negative, got {self.weight}")


class FusionMethod(StrEnum):
    """How the parameters of several adapters are merged into one adapter.

    `auto` is `linear` where the ranks of all members agree, and `svd` otherwise. The generation service chooses when
    the fusion is admitted, and an answer names what was applied.
    """

    AUTO = "auto"
    LINEAR = "linear"
    CONCAT = "concat"
    SVD = "svd"
    TIES = "ties"
    DARE = "dare"


DEFAULT_DENSITY = 0.5

_USED_BY: Mapping[str, tuple[FusionMethod, ...]] = {
    "rank": (FusionMethod.SVD, FusionMethod.TIES, FusionMethod.DARE),
    "density": (FusionMethod.TIES, FusionMethod.DARE),
    "seed": (FusionMethod.DARE,),
}


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
    """Adapters merged in their parameters before decoding.

    `rank` limits the rank of the result (svd, ties, dare; None: the largest rank of its members). `density` is the
    fraction of each delta's elements that is kept, in (0, 1] (ties, dare; None: DEFAULT_DENSITY). `seed` selects those
    elements, an unsigned 64-bit number (dare; None: derived from the members, so that equal fusions are equal). Options
    that the method does not use must be None.
    """

    adapters: tuple[WeightedAdapter, ...]
    method: FusionMethod = FusionMethod.LINEAR
    rank: int | None = None
    density: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        _check_adapters(self.adapters)
        for name, used_by in _USED_BY.items():
            if getattr(self, name) is not None and self.method not in used_by:
                methods = ", ".join(used_by)
                raise InvalidArgumentError(
                    name, f"{self.method} fusion does not use it: leave it out, or use {methods}"
                )
        if self.rank is not None and self.rank < 1:
            raise InvalidArgumentError("rank", f"must be at least 1, got {self.rank}")
        if self.density is not None and not 0 < self.density <= 1:
            raise InvalidArgumentError("density", f"must be in (0, 1], got {self.density}")
        if self.seed is not None and not 0 <= self.seed < 2**64:
            raise InvalidArgumentError("seed", f"must be an unsigned 64 bit number, got {self.seed}")


Composition = Base | Mixture | Fusion


def _check_adapters(adapters: Sequence[WeightedAdapter]) -> None:
    if not adapters:
        raise InvalidArgumentError(
            "adapters", "a mixture or fusion needs at least one adapter; leave it out for the base model"
        )
    seen: set[str] = set()
    for index, adapter in enumerate(adapters):
        with field_path(f"adapters[{index}]"):
            if adapter.adapter_id in seen:
                raise InvalidArgumentError("adapter_id", f"{adapter.adapter_id!r} is named twice; add up its weights")
        seen.add(adapter.adapter_id)
