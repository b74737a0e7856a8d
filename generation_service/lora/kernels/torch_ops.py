"""The portable LoRA products: GEMMs over the ranks in use, read in place from the bank where that is cheaper."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Values per run below which one copy of all runs costs less than a GEMM per run. A larger value copies more: gathering
#: the ranks of every layer was a third of the overhead of decoding 8 rows on a CPU (lab log, 2026-11-22: 896 -> 4864,
#: 224 of 304 ranks, 1.64 times the base layer gathered, 1.38 run by run). No measurement of the
#: threshold itself is recorded.
GATHER_BELOW_VALUES = 16384


@dataclass(frozen=True)
class RankSet:
    """R rank columns of the bank in ascending order: `columns` [R], and the same as runs of adjacent columns."""

    columns: Tensor
    runs: tuple[slice, ...]

    @property
    def count(self) -> int:
        """R, the number of ranks."""
        return int(self.columns.shape[0])

    def gathered(self, bank: Tensor, tokens: int) -> Tensor | None:
        """Return bank [ranks, ...] at these columns, [R, ...], or None if one GEMM per run is cheaper.

        A single run is a view. A copy moves R rows of the bank; each further GEMM reads or writes the `tokens` rows of
        the input or output once more.
        """
        if len(self.runs) == 1:
            return bank[self.runs[0]]
        small = self.count * bank[0].numel() < GATHER_BELOW_VALUES * len(self.runs)
        if small or self.count < tokens * (len(self.runs) - 1):
            return bank.index_select(0, self.columns)
        return None


def shrink(x: Tensor, a: Tensor, ranks: RankSet) -> Tensor:
    """Return out[t, r, m] = x[t] . a[ranks[r], m], the product with A of the M modules of a group.

    x [T, in]; a [bank ranks, M, in]; out [T, R, M].
    """
    members = a.shape[1]
    gathered = ranks.gathered(a, len(x))
    if gathered is not None:
        return (x @ gathered.view(-1, x.shape[1]).t()).view(len(x), ranks.count, members)
    out = x.new_empty(len(x), ranks.count * members)
    start = 0
    for run in ranks.runs:
        width = (run.stop - run.start) * members
        torch.mm(x, a[run].view(-1, x.shape[1]).t(), out=out[:, start : start + width])
        start += width
    return out.view(len(x), ranks.count, members)


def expand_(out: Tensor, shrunk: Tensor, b: Tensor, ranks: RankSet) -> None:
    """Add out[t] += sum_r shrunk[t, r] b[ranks[r]], in place.

    out [T, out]; shrunk [T, R], weighted; b [bank ranks, out], with the scaling folded in.
    """
    gathered = ranks.gathered(b, len(out))
    if gathered is not None:
        out.addmm_(shrunk, gathered)
        return
    start = 0
    for run in ranks.runs:
        width = run.stop - run.start
        out.addmm_(shrunk[:, start : start + width], b[run])
        start += width
