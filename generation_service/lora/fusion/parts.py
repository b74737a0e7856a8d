"""One module of one adapter, as fusion computes with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from generation_service.lora.weights import LoraPair


@dataclass(frozen=True)
class Part:
    """An adapter's share in one module: a [r, in], b [out, r] with the scaling folded in, float32 or float64."""

    a: Tensor
    b: Tensor
    weight: float
    name: str

    @classmethod
    def of(cls, pair: LoraPair, weight: float, name: str) -> Part:
        """Return `pair` in the precision that fusion computes in."""
        dtype = torch.promote_types(pair.a.dtype, torch.float32)
        return cls(pair.a.to(dtype), pair.b.to(dtype), weight, name)

    @property
    def rank(self) -> int:
        """Rows of a, columns of b."""
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape [out, in] of the delta."""
        return self.b.shape[0], self.a.shape[1]

    def delta(self, rows: slice = slice(None)) -> Tensor:
        """Return b @ a, or `rows` of it."""
        return self.b[rows] @ self.a
