"""A step's compositions as one mask over the ranks that any of its rows uses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from generation_service.adapters.ranks import RankRange

RowWeights = Mapping[RankRange, float]
"""One row's composition: the ranges of the bank it applies, each with its weight. Empty: the base model alone."""


@dataclass(frozen=True)
class ActiveRanks:
    """What one forward pass applies.

    `ranges` are the distinct ranges in use, by start. `columns` [R_active] are their columns in the bank, and `span`
    the same as a slice where they happen to lie side by side. `mask` [rows, R_active] is each row's weight at each
    column, 0 where the row does not use it; `unused` is where it is 0.
    """

    ranges: tuple[RankRange, ...]
    columns: Tensor
    span: slice | None
    mask: Tensor
    unused: Tensor

    @cached_property
    def tickets(self) -> frozenset[int]:
        """The tickets of `ranges`."""
        return frozenset(owned.ticket for owned in self.ranges)

    @property
    def rows(self) -> int:
        """Rows of the batch."""
        return int(self.mask.shape[0])

    def rows_of(self, bank: Tensor) -> Tensor:
        """Return bank [R, features] at the active columns, [R_active, features], without a copy where they adjoin."""
        return bank[self.span] if self.span is not None else bank.index_select(0, self.columns)


def active_ranks(rows: Sequence[RowWeights], device: torch.device, dtype: torch.dtype) -> ActiveRanks | None:
    """Return the mask of `rows` over the ranks they use, or None when no row applies anything.

    Ranges of weight 0 are left out. `dtype` is that of the mask. Raises ValueError for a weight that is not finite.
    """
    for row in rows:
        for owned, weight in row.items():
            if not math.isfinite(weight):
                raise ValueError(f"the weight of {owned} is {weight}, not a finite number")
    ranges = sorted({owned for row in rows for owned, weight in row.items() if weight != 0 and owned.rank > 0})
    if not ranges:
        return None
    shares = torch.tensor([[row.get(owned, 0.0) for owned in ranges] for row in rows], dtype=dtype)
    mask = shares.repeat_interleave(torch.tensor([owned.rank for owned in ranges]), dim=1).to(device)
    start, stop = ranges[0].start, ranges[-1].stop
    return ActiveRanks(
        ranges=tuple(ranges),
        columns=torch.cat([torch.arange(owned.start, owned.stop) for owned in ranges]).to(device),
        span=slice(start, stop) if stop - start == mask.shape[1] else None,
        mask=mask,
        unused=mask == 0,
    )
