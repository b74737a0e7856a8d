"""The portable path: weighted adapters as two GEMMs over the active ranks of the bank."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class RankMask:
    """The weight of each active rank, [..., R] to broadcast over a layer's input [..., in].

    `weights` has at least float32's precision; `unused` is where it is 0.
    """

    weights: Tensor
    unused: Tensor


def add_mixture_delta(out: Tensor, x: Tensor, a: Tensor, b: Tensor, mask: RankMask) -> Tensor:
    """Add ((x a^T) * mask) b to `out`, in place, and return it (LoraRetriever, eq. 4, stacked along the rank).

    x [..., in]; out [..., out], contiguous; a [R, in] and b [R, out], scaling folded into b. A rank that a row does
    not use adds exactly nothing to that row, even where its own product overflows.
    """
    shrunk = (x @ a.t()).mul(mask.weights).masked_fill_(mask.unused, 0).to(x.dtype)
    out.view(-1, out.shape[-1]).addmm_(shrunk.view(-1, shrunk.shape[-1]), b)
    return out
