"""Compositions of decode steps at addresses that never change, so that a captured step serves every later one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from generation_service.lora.mixture import RowWeights
from generation_service.lora.ranks import RankRange
from generation_service.lora.step_lora import Place


class FixedKernels(Protocol):
    """Products over the ranks in `columns`, without a look at any value on the host.

    `columns` [C] int32 are rows of the bank, of which the first `count` [1] int32 are in use; `weights` [N, C] are
    float32 and 0 for the rest.
    """

    follows_count: bool
    """Whether the cost follows `count` rather than C."""

    def shrink(self, x: Tensor, a: Tensor, columns: Tensor, count: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted x A^T: x [N, in]; a [bank ranks, M, in]. Returns [M, N, C], 0 where the weight is."""

    def expand_(self, out: Tensor, shrunk: Tensor, b: Tensor, columns: Tensor, count: Tensor) -> None:
        """Add shrunk B to out [N, out] in place. shrunk [N, C]; b [bank ranks, out]."""


class FixedRanks:
    """Buffers for `rows` rows over at most `ranks` ranks of the bank; `fill` is the only thing that changes them."""

    def __init__(self, rows: int, ranks: int, device: torch.device) -> None:
        self.columns = torch.zeros(ranks, dtype=torch.int32, device=device)
        self.count = torch.zeros(1, dtype=torch.int32, device=device)
        self.weights = torch.zeros(rows, ranks, dtype=torch.float32, device=device)
        self._filled: dict[int, dict[RankRange, float]] | None = None
        self._used = 0

    def fill(self, rows: dict[int, RowWeights]) -> int:
        """Let row n apply `rows[n]`, the others nothing; return how many ranks are in use.

        Raises ValueError for a weight that is not finite.
        """
        given = {row: dict(weights) for row, weights in rows.items()}
        if given == self._filled:
            return self._used
        for owned, weight in ((owned, weight) for row in rows.values() for owned, weight in row.items()):
            if not math.isfinite(weight):
                raise ValueError(f"the weight of {owned} is {weight}, not a finite number")
        ranges = sorted({owned for row in rows.values() for owned, weight in row.items() if weight != 0 and owned.rank})
        columns = [column for owned in ranges for column in range(owned.start, owned.stop)]
        weights = torch.zeros(self.weights.shape)
        for row, applied in rows.items():
            shares = [applied.get(owned, 0.0) for owned in ranges for _ in range(owned.rank)]
            weights[row, : len(shares)] = torch.tensor(shares)
        self.columns.copy_(torch.tensor(columns + [0] * (len(self.columns) - len(columns)), dtype=torch.int32))
        self.count.fill_(len(columns))
        self.weights.copy_(weights)
        self._filled, self._used = given, len(columns)
        return self._used


class FixedStep:
    """What a captured step applies: the first `rows` rows and `ranks` ranks of the buffers, whatever they hold."""

    def __init__(self, buffers: FixedRanks, rows: int, ranks: int, kernels: FixedKernels) -> None:
        self._columns = buffers.columns[:ranks]
        self._count = buffers.count
        self._weights = buffers.weights[:rows, :ranks]
        self._kernels = kernels

    def touches(self, place: Place) -> bool:
        """Return whether any adapter ever adapted the module: a captured step serves those that it does not know."""
        return place.shelf.ever_adapted[place.member]

    def shrink(self, x: Tensor, place: Place) -> list[Tensor]:
        """Return [M, N, C] for the one token of each row. x [N, 1, in]."""
        flat = x.reshape(-1, x.shape[-1])
        return [self._kernels.shrink(flat, place.shelf.a, self._columns, self._count, self._weights)]

    def expand_(self, out: Tensor, shrunk: Sequence[Tensor], place: Place) -> None:
        """Add the module's part to out [N, 1, out], in place."""
        b = place.shelf.factors_b[place.member]
        flat = out.view(-1, out.shape[-1])
        self._kernels.expand_(flat, shrunk[0][place.member], b, self._columns, self._count)
