"""The portable step: every layer's input cut into portions that apply the same ranks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from generation_service.lora.kernels.torch_ops import expand_, shrink
from generation_service.lora.mixture import ActiveRanks, WeightedRanks
from generation_service.lora.step_lora import Place

RowIndex = Sequence[int] | Tensor
"""For each leading element of an input (patch, merged patch or tile), the row of the batch it belongs to."""

ROW_ALONE_FROM = 8
"""Tokens of a row from which its own ranks alone are multiplied; below, one product over the ranks of all rows."""


@dataclass(frozen=True)
class Portion:
    """Leading elements of an input, and what they apply."""

    where: slice
    applied: WeightedRanks


class RoutedRows:
    """Rows of a batch, each with its composition; `indices` are the rows of patches and tiles, by prefix."""

    def __init__(self, ranks: ActiveRanks, indices: Mapping[str, tuple[Tensor, ...]]) -> None:
        self.ranks = ranks
        self._indices = indices
        self._portions: dict[tuple[str | None, tuple[int, ...]], list[Portion]] = {}

    def touches(self, place: Place) -> bool:
        """Return whether an adapter of the step adapts the module."""
        return not place.shelf.adapted_by[place.member].isdisjoint(self.ranks.tickets)

    def shrink(self, x: Tensor, place: Place) -> list[Tensor]:
        """Return, for each portion of x [..., in], its weighted product [M, T, R] with the shelf's A.

        Raises ValueError when the leading elements of x cannot be told apart by row: no answer beats a wrong one.
        """
        return [self._shrunk(x[portion.where], portion.applied, place) for portion in self._of(x.shape, place)]

    def expand_(self, out: Tensor, shrunk: list[Tensor], place: Place) -> None:
        """Add each portion's products with the module's B to out [..., out], in place."""
        b = place.shelf.factors_b[place.member]
        for portion, product in zip(self._of(out.shape, place), shrunk, strict=True):
            part = out[portion.where]
            expand_(part.view(-1, part.shape[-1]), product[place.member], b, portion.applied.ranks)

    @staticmethod
    def _shrunk(x: Tensor, applied: WeightedRanks, place: Place) -> Tensor:
        """Return [M, T, R]. A rank that a row does not use adds nothing to it, even where its own product overflows."""
        product = shrink(x.reshape(-1, x.shape[-1]), place.shelf.a, applied.ranks)
        by_shape = product.view(*x.shape[:-1], *product.shape[1:])
        weighted = by_shape * applied.weights[..., None]
        if applied.unused is not None:
            weighted.masked_fill_(applied.unused[..., None], 0)
        return weighted.to(x.dtype).view(product.shape).permute(2, 0, 1).contiguous()

    def _of(self, shape: Sequence[int], place: Place) -> list[Portion]:
        key = (place.image_prefix, tuple(shape[:-1]))
        known = self._portions.get(key)
        if known is None:
            known = self._portions[key] = self._cut(key[1], place)
        return known

    def _cut(self, shape: tuple[int, ...], place: Place) -> list[Portion]:
        """Return the portions of an input [*shape, in]."""
        rows, dims = len(self.ranks.rows), len(shape) + 1
        if rows == 1:
            return self._by_row([slice(None)])
        if place.image_prefix is not None:
            index = self._index_of(place, shape[0])
            bounds = _bounds(index, rows) if math.prod(shape) >= ROW_ALONE_FROM * rows else None
            if bounds is not None:
                return self._by_row(bounds)
            return [Portion(slice(None), self.ranks.together.of_rows(index, shape[0], dims))]
        if shape[0] != rows or dims < 3:
            raise ValueError(
                f"{place.path} got an input of shape {[*shape, place.shelf.a.shape[-1]]} in a step of {rows} rows: its "
                "leading dimension must be the rows of the batch, [rows, tokens, features]"
            )
        if shape[1] >= ROW_ALONE_FROM:
            return self._by_row([slice(row, row + 1) for row in range(rows)])
        return [Portion(slice(None), self.ranks.together.of_rows(None, rows, dims))]

    def _by_row(self, bounds: Sequence[slice]) -> list[Portion]:
        alone = [(where, self.ranks.alone(row)) for row, where in enumerate(bounds)]
        return [Portion(where, applied) for where, applied in alone if applied is not None]

    def _index_of(self, place: Place, leading: int) -> Tensor:
        given = self._indices.get(place.image_prefix or "", ())
        for index in given:
            if index.shape[0] == leading:
                return index
        lengths = [len(index) for index in given]
        raise ValueError(
            f"{place.path} got {leading} patches or tiles of several rows' images, and the step was not told whose "
            f"they are (image_rows[{place.image_prefix!r}] has lengths {lengths}): give an index of that length, or "
            "prefill one row at a time"
        )


def _bounds(index: Tensor, rows: int) -> list[slice] | None:
    """Return where each row's elements lie, or None where a row's do not lie side by side in the order of rows."""
    if bool((index.diff() < 0).any()):
        return None
    counts = torch.bincount(index, minlength=rows).tolist()
    stops = list(itertools.accumulate(counts))
    return [slice(stop - count, stop) for stop, count in zip(stops, counts, strict=True)]
