"""The portable path: weighted adapters as GEMMs over the ranks in use, read where they lie in the bank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

GATHER_BELOW = 16384
"""Values a run below which copying all runs together costs less than a GEMM for each."""


@dataclass(frozen=True)
class RankSet:
    """Ranks of the bank in ascending order: their columns [R], and the same as runs of neighbours."""

    columns: Tensor
    runs: tuple[slice, ...]

    @property
    def count(self) -> int:
        """R, the ranks."""
        return int(self.columns.shape[0])

    def gathered(self, bank: Tensor, tokens: int) -> Tensor | None:
        """Return bank [ranks, ...] at these columns, [R, ...], where that beats a GEMM a run for `tokens` inputs.

        A single run is a view. A copy moves R rows of the bank, and every further GEMM `tokens` rows of in- or output.
        """
        if len(self.runs) == 1:
            return bank[self.runs[0]]
        little = self.count * bank[0].numel() < GATHER_BELOW * len(self.runs)
        if little or self.count < tokens * (len(self.runs) - 1):
            return bank.index_select(0, self.columns)
        return None


def shrink(x: Tensor, a: Tensor, ranks: RankSet) -> Tensor:
    """Return x A^T over `ranks` for every module of a group.

    x [T, in]; a [bank ranks, M, in]. Returns [T, R, M].
    """
    members = a.shape[1]
    together = ranks.gathered(a, len(x))
    if together is not None:
        return (x @ together.view(-1, x.shape[1]).t()).view(len(x), ranks.count, members)
    out = x.new_empty(len(x), ranks.count * members)
    place = 0
    for run in ranks.runs:
        width = (run.stop - run.start) * members
        torch.mm(x, a[run].view(-1, x.shape[1]).t(), out=out[:, place : place + width])
        place += width
    return out.view(len(x), ranks.count, members)


def expand_(out: Tensor, shrunk: Tensor, b: Tensor, ranks: RankSet) -> None:
    """Add shrunk B to `out`, in place: out [T, out]; shrunk [T, R], weighted; b [bank ranks, out] with the scaling."""
    together = ranks.gathered(b, len(out))
    if together is not None:
        out.addmm_(shrunk, together)
        return
    place = 0
    for run in ranks.runs:
        width = run.stop - run.start
        out.addmm_(shrunk[:, place : place + width], b[run])
        place += width
