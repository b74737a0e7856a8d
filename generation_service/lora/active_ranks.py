"""The compositions of a batch as weights over the rank columns that its rows use."""

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
"""The composition of one row: the bank ranges it applies and the weight of each. Empty: the base model alone."""


@dataclass(frozen=True)
class WeightedRanks:
    """R rank columns of the bank and their weights [.., R], which broadcast over inputs [.., in].

    `weights` is at least float32. `unused` [.., R] is true where a weight is 0, None if no weight is 0.
    """

    ranks: RankSet
    weights: Tensor
    unused: Tensor | None = None

    def of_rows(self, index: Tensor | None, leading: int, dims: int) -> WeightedRanks:
        """Return the weights for an input of `dims` dimensions whose first has length `leading`.

        Element n of that dimension belongs to row index[n], or to row n if `index` is None.
        """
        assert self.unused is not None, "only weights [rows, R] can be spread over rows"
        weights, unused = self.weights, self.unused
        if index is not None:
            weights, unused = weights.index_select(0, index), unused.index_select(0, index)
        shape = (leading, *([1] * (dims - 2)), weights.shape[-1])
        return WeightedRanks(self.ranks, weights.view(shape), unused.view(shape))


class ActiveRanks:
    """What one forward pass applies: `rows[n]` to row n of the batch. Ranges of weight 0 are left out."""

    def __init__(self, rows: Sequence[RowWeights], device: torch.device, dtype: torch.dtype) -> None:
        self.rows = tuple(
            {owned: weight for owned, weight in row.items() if weight != 0 and owned.rank > 0} for row in rows
        )
        self.epochs = frozenset(owned.epoch for row in self.rows for owned in row)
        self._device, self._dtype = device, dtype
        self._of_row: dict[int, WeightedRanks | None] = {}

    @cached_property
    def union(self) -> WeightedRanks:
        """The ranks that any row uses, with the weight [rows, R] of each rank in each row."""
        ranges = sorted({owned for row in self.rows for owned in row})
        weights = torch.tensor([[row.get(owned, 0.0) for owned in ranges] for row in self.rows], dtype=self._dtype)
        repeats = torch.tensor([owned.rank for owned in ranges])
        weights = weights.repeat_interleave(repeats, dim=1).to(self._device)
        return WeightedRanks(_rank_set(ranges, self._device), weights, weights == 0)

    def of_row(self, row: int) -> WeightedRanks | None:
        """Return the ranks of one row with their weights [R], or None for a row without adapters."""
        if row not in self._of_row:
            self._of_row[row] = self._build_row(self.rows[row])
        return self._of_row[row]

    def _build_row(self, row: RowWeights) -> WeightedRanks | None:
        if not row:
            return None
        ranges = sorted(row)
        weights = [row[owned] for owned in ranges for _ in range(owned.rank)]
        return WeightedRanks(
            _rank_set(ranges, self._device), torch.tensor(weights, dtype=self._dtype, device=self._device)
        )


def active_ranks(rows: Sequence[RowWeights], device: torch.device, dtype: torch.dtype) -> ActiveRanks | None:
    """Return what `rows` apply, with weights in `dtype`, or None if no row applies anything.

    Raises ValueError if a weight is not finite.
    """
    check_finite_weights(rows)
    active = ActiveRanks(rows, device, dtype)
    return active if active.epochs else None


def check_finite_weights(rows: Sequence[RowWeights]) -> None:
    """Raise ValueError if a weight is not finite."""
    for row in rows:
        for owned, weight in row.items():
            if not math.isfinite(weight):
                raise ValueError(f"the weight of {owned} is {weight}, not a finite number")


def _rank_set(ranges: Sequence[RankRange], device: torch.device) -> RankSet:
    """Return the columns of sorted ranges, with adjacent ranges merged into one run."""
    runs: list[slice] = []
    for owned in ranges:
        if runs and runs[-1].stop == owned.start:
            runs[-1] = slice(runs[-1].start, owned.stop)
        else:
            runs.append(slice(owned.start, owned.stop))
    columns = torch.cat([torch.arange(run.start, run.stop) for run in runs])
    return RankSet(columns.to(device), tuple(runs))
