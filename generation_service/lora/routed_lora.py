"""The portable LoRA path: each layer input is split into portions whose elements apply the same ranks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from generation_service.lora.active_ranks import ActiveRanks, WeightedRanks
from generation_service.lora.kernels.torch_ops import expand_, shrink
from generation_service.lora.weight_group import ModuleSlot

RowIndex = Sequence[int] | Tensor
"""The batch row of each leading element of an input (patch, merged patch or tile)."""

#: Tokens per row from which every row multiplies its own ranks only, one product a row. Below it, one product over the
#: ranks of all rows reads each rank once, which is what a decode step costs. Decode has one token a row and prefill has
#: hundreds, so the value only has to lie between them; no measurement of the value itself is recorded.
_SPLIT_ROWS_FROM_TOKENS = 8


_Where = slice | tuple[slice, slice]
"""A slice of an input's leading elements, or of the tokens of its only leading element."""


@dataclass(frozen=True)
class _Portion:
    """A part of an input, and the ranks that it applies."""

    where: _Where
    applied: WeightedRanks


class RoutedLora:
    """Applies `ranks.rows[n]` to row n of the batch.

    `indices` maps a `by_image` prefix to the row indices of its patches and tiles, one tensor per leading length.
    `lengths`: the rows are packed into one sequence, [1, sum of lengths, in], in which row n has lengths[n] tokens.
    """

    def __init__(
        self, ranks: ActiveRanks, indices: Mapping[str, tuple[Tensor, ...]], lengths: Sequence[int] | None = None
    ) -> None:
        self.ranks = ranks
        self._indices = indices
        self._lengths = lengths
        self._portions: dict[tuple[str | None, tuple[int, ...]], list[_Portion]] = {}

    def affects(self, slot: ModuleSlot) -> bool:
        """Return whether an adapter of the step changes the module."""
        return not slot.group.adapted_by[slot.member].isdisjoint(self.ranks.epochs)

    def shrink(self, x: Tensor, slot: ModuleSlot) -> list[Tensor]:
        """Return w * (x A^T) for the M modules of the slot's group, one [M, T, R] per portion of x [..., in].

        Raises ValueError if the leading elements of x cannot be assigned to rows.
        """
        portions = self._portions_of(x.shape, slot)
        return [self._shrink_portion(x[portion.where], portion.applied, slot) for portion in portions]

    def expand_(self, out: Tensor, shrunk: list[Tensor], slot: ModuleSlot) -> None:
        """Add shrunk B of the slot's module to out [..., out], portion by portion, in place."""
        for portion, product in zip(self._portions_of(out.shape, slot), shrunk, strict=True):
            rows = out[portion.where]
            expand_(rows.view(-1, rows.shape[-1]), product[slot.member], slot.b, portion.applied.ranks)

    @staticmethod
    def _shrink_portion(x: Tensor, applied: WeightedRanks, slot: ModuleSlot) -> Tensor:
        """Return [M, T, R], 0 where a row does not use a rank.

        Masked rather than multiplied by 0: the product of an unused rank may overflow, and 0 times infinity is NaN.
        """
        product = shrink(x.reshape(-1, x.shape[-1]), slot.group.a, applied.ranks)
        by_shape = product.view(*x.shape[:-1], *product.shape[1:])
        weighted = by_shape * applied.weights[..., None]
        if applied.unused is not None:
            weighted.masked_fill_(applied.unused[..., None], 0)
        return weighted.to(x.dtype).view(product.shape).permute(2, 0, 1).contiguous()

    def _portions_of(self, shape: Sequence[int], slot: ModuleSlot) -> list[_Portion]:
        key = (slot.image_prefix, tuple(shape[:-1]))
        portions = self._portions.get(key)
        if portions is None:
            portions = self._portions[key] = self._split(key[1], slot)
        return portions

    def _split(self, shape: tuple[int, ...], slot: ModuleSlot) -> list[_Portion]:
        """Return the portions of an input [*shape, in]."""
        rows, dims = len(self.ranks.rows), len(shape) + 1
        if rows == 1:
            return self._by_row([slice(None)])
        if slot.image_prefix is not None:
            index = self._index_of(slot, shape[0])
            bounds = _row_bounds(index, rows) if math.prod(shape) >= _SPLIT_ROWS_FROM_TOKENS * rows else None
            if bounds is not None:
                return self._by_row(bounds)
            return [_Portion(slice(None), self.ranks.union.of_rows(index, shape[0], dims))]
        if self._lengths is not None:
            return self._packed(shape, self._lengths, slot)
        if shape[0] != rows or dims < 3:
            raise ValueError(
                f"{slot.path} got an input of shape {[*shape, slot.group.a.shape[-1]]} in a step of {rows} rows: its "
                "leading dimension must be the rows of the batch, [rows, tokens, features]"
            )
        if shape[1] >= _SPLIT_ROWS_FROM_TOKENS:
            return self._by_row([slice(row, row + 1) for row in range(rows)])
        return [_Portion(slice(None), self.ranks.union.of_rows(None, rows, dims))]

    def _packed(self, shape: tuple[int, ...], lengths: Sequence[int], slot: ModuleSlot) -> list[_Portion]:
        stops = list(itertools.accumulate(lengths))
        if shape != (1, stops[-1]):
            raise ValueError(f"{slot.path} got {list(shape)} tokens in a step of {stops[-1]} packed ones")
        segments = [slice(stop - length, stop) for stop, length in zip(stops, lengths, strict=True)]
        return self._by_row([(slice(None), segment) for segment in segments])

    def _by_row(self, bounds: Sequence[_Where]) -> list[_Portion]:
        by_row = [(where, self.ranks.of_row(row)) for row, where in enumerate(bounds)]
        return [_Portion(where, applied) for where, applied in by_row if applied is not None]

    def _index_of(self, slot: ModuleSlot, leading: int) -> Tensor:
        indices = self._indices.get(slot.image_prefix or "", ())
        for index in indices:
            if index.shape[0] == leading:
                return index
        lengths = [len(index) for index in indices]
        raise ValueError(
            f"{slot.path} got {leading} patches or tiles of several rows' images, and no row index of that length "
            f"(image_rows[{slot.image_prefix!r}] has lengths {lengths}): pass one, or prefill one row at a time"
        )


def _row_bounds(index: Tensor, rows: int) -> list[slice] | None:
    """Return the slice of each row's elements, or None unless the index is sorted by row."""
    if bool((index.diff() < 0).any()):
        return None
    counts = torch.bincount(index, minlength=rows).tolist()
    stops = list(itertools.accumulate(counts))
    return [slice(stop - count, stop) for stop, count in zip(stops, counts, strict=True)]
