"""A step's compositions as weights over the ranks that its rows use."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from generation_service.lora.kernels.torch_ops import RankSet
from generation_service.lora.ranks import RankRange

RowWeights = Mapping[RankRange, float]
"""One row's composition: the ranges of the bank it applies, each with its weight. Empty: the base model alone."""


@dataclass(frozen=True)
class WeightedRanks:
    """Ranks of the bank and the weight of each: weights [.., R], to broadcast over inputs [.., in].

    `weights` has at least float32's precision; `unused` is where it is 0, None where no weight is.
    """

    ranks: RankSet
    weights: Tensor
    unused: Tensor | None = None

    def of_rows(self, index: Tensor | None, leading: int, dims: int) -> WeightedRanks:
        """Return the weights [rows, R] for inputs of `dims` dimensions: leading element n is of row index[n], or n."""
        assert self.unused is not None, "the weights of several rows"
        weights, unused = self.weights, self.unused
        if index is not None:
            weights, unused = weights.index_select(0, index), unused.index_select(0, index)
        shape = (leading, *([1] * (dims - 2)), weights.shape[-1])
        return WeightedRanks(self.ranks, weights.view(shape), unused.view(shape))


class ActiveRanks:
    """What one forward pass applies: row n of the batch gets `rows[n]`. Ranges of weight 0 are left out."""

    def __init__(self, rows: Sequence[RowWeights], device: torch.device, dtype: torch.dtype) -> None:
        self.rows = tuple(
            {owned: weight for owned, weight in row.items() if weight != 0 and owned.rank > 0} for row in rows
        )
        self.tickets = frozenset(owned.ticket for row in self.rows for owned in row)
        self._device, self._dtype = device, dtype
        self._alone: dict[int, WeightedRanks | None] = {}

    @cached_property
    def together(self) -> WeightedRanks:
        """The ranks that any row uses, and the weight [rows, R] of each in each row."""
        ranges = sorted({owned for row in self.rows for owned in row})
        shares = torch.tensor([[row.get(owned, 0.0) for owned in ranges] for row in self.rows], dtype=self._dtype)
        repeats = torch.tensor([owned.rank for owned in ranges])
        weights = shares.repeat_interleave(repeats, dim=1).to(self._device)
        return WeightedRanks(_rank_set(ranges, self._device), weights, weights == 0)

    def alone(self, row: int) -> WeightedRanks | None:
        """Return the ranks of one row with their weights [R], or None where it applies nothing."""
        if row not in self._alone:
            self._alone[row] = self._of_row(self.rows[row])
        return self._alone[row]

    def _of_row(self, row: RowWeights) -> WeightedRanks | None:
        if not row:
            return None
        ranges = sorted(row)
        weights = [row[owned] for owned in ranges for _ in range(owned.rank)]
        return WeightedRanks(
            _rank_set(ranges, self._device), torch.tensor(weights, dtype=self._dtype, device=self._device)
        )


def active_ranks(rows: Sequence[RowWeights], device: torch.device, dtype: torch.dtype) -> ActiveRanks | None:
    """Return what `rows` apply, weights in `dtype`; None when that is nothing.

    Raises ValueError for a weight that is not finite.
    """
    for row in rows:
        for owned, weight in row.items():
            if not math.isfinite(weight):
                raise ValueError(f"the weight of {owned} is {weight}, not a finite number")
    active = ActiveRanks(rows, device, dtype)
    return active if active.tickets else None


def _rank_set(ranges: Sequence[RankRange], device: torch.device) -> RankSet:
    """Return the columns of sorted ranges; those that lie side by side become one run."""
    runs: list[slice] = []
    for owned in ranges:
        if runs and runs[-1].stop == owned.start:
            runs[-1] = slice(runs[-1].start, owned.stop)
        else:
            runs.append(slice(owned.start, owned.stop))
    columns = torch.cat([torch.arange(run.start, run.stop) for run in runs])
    return RankSet(columns.to(device), tuple(runs))
