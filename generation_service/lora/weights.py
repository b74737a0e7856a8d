"""An adapter's parameters on the host."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Shapes = Mapping[str, tuple[int, int]]
"""The modules of a base model that adapters may adapt: canonical module path -> (in features, out features)."""


@dataclass(frozen=True)
class LoraPair:
    """The factors of one module's delta, b @ a. a [rank, in]; b [out, rank] with the scaling folded in."""

    a: Tensor
    b: Tensor

    @property
    def rank(self) -> int:
        """Rows of a, columns of b."""
        return int(self.a.shape[0])


@dataclass(frozen=True)
class AdapterWeights:
    """One adapter, read or fused. `rank` is the largest of its modules', 0 when it changes nothing.

    `modules` is keyed by the base model's canonical module path. `revision` names the content it was read from, and
    is empty for a fused adapter.
    """

    rank: int
    modules: Mapping[str, LoraPair]
    revision: str = ""

    @classmethod
    def of(cls, modules: Mapping[str, LoraPair], revision: str = "") -> AdapterWeights:
        """Return the adapter of `modules`, its rank derived from them."""
        return cls(max((pair.rank for pair in modules.values()), default=0), modules, revision)

    @property
    def bytes(self) -> int:
        """Bytes of all factors on the host."""
        return sum(pair.a.nbytes + pair.b.nbytes for pair in self.modules.values())


def all_finite(tensor: Tensor) -> bool:
    """Return whether no value is NaN or infinite: their sum tells in one pass, unless it overflows by itself."""
    total = tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32))
    return math.isfinite(total.item()) or bool(tensor.isfinite().all())
