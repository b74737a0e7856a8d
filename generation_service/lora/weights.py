"""The parameters of one adapter in host memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Shapes = Mapping[str, tuple[int, int]]
"""The linear layers of a base model that adapters can change: canonical module path -> (in features, out features)."""


@dataclass(frozen=True)
class LoraPair:
    """The two factors of one module's delta, delta = b @ a.

    a [rank, in]; b [out, rank], with the adapter's scaling (alpha/r, or alpha/sqrt(r) for rsLoRA) folded in.
    """

    a: Tensor
    b: Tensor

    @property
    def rank(self) -> int:
        """Rows of a, which are the columns of b."""
        return int(self.a.shape[0])


@dataclass(frozen=True)
class AdapterWeights:
    """The weights of one adapter, read from a checkpoint or fused from several.

    `modules` is keyed by canonical module path. `rank` is the largest rank of any module, 0 for an adapter that changes
    nothing. `revision` is the revision of the checkpoint, empty for a fused adapter.
    """

    rank: int
    modules: Mapping[str, LoraPair]
    revision: str = ""

    @classmethod
    def of(cls, modules: Mapping[str, LoraPair], revision: str = "") -> AdapterWeights:
        """Build an adapter from `modules` and derive its rank from them."""
        return cls(max((pair.rank for pair in modules.values()), default=0), modules, revision)

    @property
    def bytes(self) -> int:
        """Bytes of all factors in host memory."""
        return sum(pair.a.nbytes + pair.b.nbytes for pair in self.modules.values())


def all_finite(tensor: Tensor) -> bool:
    """Return whether no value is NaN or infinite.

    A finite sum proves it in one pass; only a sum that overflows needs the exact test, element by element.
    """
    total = tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32))
    return math.isfinite(total.item()) or bool(tensor.isfinite().all())
