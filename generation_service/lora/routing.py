"""Which adapters each row of the running forward pass applies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from generation_service.lora.active_ranks import ActiveRanks, RowWeights, active_ranks
from generation_service.lora.ranks import RankRange
from generation_service.lora.routed_lora import RoutedLora, RowIndex
from generation_service.lora.weight_group import LoraWeightGroup, ModuleSlot


class StepLora(Protocol):
    """The weighted adapters of one forward pass, applied in two halves: delta = (w * (x A^T)) B."""

    def affects(self, slot: ModuleSlot) -> bool:
        """Return whether the module's output can differ from the base layer's."""

    def shrink(self, x: Tensor, slot: ModuleSlot) -> list[Tensor]:
        """Return w * (x A^T) for the M modules of the slot's group: x [..., in] -> [M, T, R] per portion."""

    def expand_(self, out: Tensor, shrunk: list[Tensor], slot: ModuleSlot) -> None:
        """Add shrunk B of the slot's module to contiguous out [..., out], in place."""


@dataclass(frozen=True, eq=False)
class _SharedProduct:
    """The product with A that the modules of one group share for one input tensor."""

    group: LoraWeightGroup
    input: Tensor
    product: list[Tensor]


class Routing:
    """The compositions of the forward pass that is running. One per bank.

    Called on: the engine thread only, both to set and to read.

    Modules below a `by_image` prefix (the vision tower and its projector) see the patches or tiles of all rows' images
    rather than the rows themselves, so a step of several rows must state the row of each patch or tile. `published` are
    the ranges that hold an adapter; no other range may be applied.
    """

    def __init__(
        self, published: Set[RankRange], device: torch.device, dtype: torch.dtype, by_image: Sequence[str] = ()
    ) -> None:
        self._published = published
        self._device = device
        self._weights_dtype = torch.promote_types(dtype, torch.float32)
        self._by_image = tuple(by_image)
        self._last_rows: list[dict[RankRange, float]] = []
        self._last_ranks: ActiveRanks | None = None
        self._shared: _SharedProduct | None = None
        self.active: StepLora | None = None

    def begin(
        self,
        rows: Sequence[RowWeights],
        image_rows: Mapping[str, Sequence[RowIndex]] | None = None,
        lengths: Sequence[int] | None = None,
    ) -> None:
        """Route the following forward passes: `rows[n]` is the composition of row n of the batch.

        The leading dimension of a module's input is the rows, [rows, ..., in]; a single row applies to the whole of any
        input. `image_rows` gives, per `by_image` prefix, the row of each leading element of the inputs below it: one
        index for each leading length that occurs (patches, merged patches). With `lengths`, the rows are packed into
        one sequence instead, [1, sum of lengths, in].

        Raises ValueError for a range without an adapter, an index out of range, an unknown prefix, or two indices of
        the same length below one prefix.
        """
        self.end()
        self.check(rows)
        ranks = self._active_ranks(rows)
        if ranks is not None:
            indices = {
                prefix: self._checked_indices(prefix, given, len(rows)) for prefix, given in (image_rows or {}).items()
            }
            self.active = RoutedLora(ranks, indices, lengths if len(rows) > 1 else None)

    def end(self) -> None:
        """Apply nothing: layers run the base model alone, at no cost."""
        self.active = None
        self._shared = None

    @contextmanager
    def step(
        self,
        rows: Sequence[RowWeights],
        image_rows: Mapping[str, Sequence[RowIndex]] | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Iterator[None]:
        """Call `begin` on entry and `end` on exit."""
        self.begin(rows, image_rows, lengths)
        try:
            yield
        finally:
            self.end()

    @contextmanager
    def applying(self, lora: StepLora | None) -> Iterator[None]:
        """Apply a prepared `lora` until exit."""
        self.active = lora
        try:
            yield
        finally:
            self.end()

    def shrink(self, input: Tensor, x: Tensor, slot: ModuleSlot, lora: StepLora) -> list[Tensor]:
        """Return w * (x A^T) for the slot's group, where x is `input` in the bank's dtype.

        The first module of a group to see an input tensor computes the product for its siblings. It is cached until
        another group runs, or the step ends.
        """
        if len(slot.group.paths) == 1:
            return lora.shrink(x, slot)
        shared = self._shared
        if shared is None or shared.group is not slot.group or shared.input is not input:
            shared = self._shared = _SharedProduct(slot.group, input, lora.shrink(x, slot))
        return shared.product

    def check(self, rows: Sequence[RowWeights]) -> None:
        """Raise ValueError if a row applies a range without an adapter."""
        for owned in {owned for row in rows for owned in row}:
            if owned not in self._published:
                raise ValueError(f"{owned} holds no adapter of this bank: it was released, or never written")

    def image_prefix(self, path: str) -> str | None:
        """Return the `by_image` prefix that contains the module at `path`, or None."""
        return next((prefix for prefix in self._by_image if path == prefix or path.startswith(f"{prefix}.")), None)

    def _active_ranks(self, rows: Sequence[RowWeights]) -> ActiveRanks | None:
        """Return what `rows` apply, reusing the last step's tensors if nothing changed, as in most decode steps."""
        copied = [dict(row) for row in rows]
        if copied != self._last_rows:
            self._last_ranks = active_ranks(rows, self._device, self._weights_dtype)
            self._last_rows = copied
        return self._last_ranks

    def _checked_indices(self, prefix: str, indices: Sequence[RowIndex], rows: int) -> tuple[Tensor, ...]:
        if prefix not in self._by_image:
            raise ValueError(f"image_rows names {prefix!r}; this bank routes by image below {list(self._by_image)}")
        tensors = [torch.as_tensor(index, dtype=torch.int64) for index in indices]
        if any(index.dim() != 1 or bool(((index < 0) | (index >= rows)).any()) for index in tensors):
            raise ValueError(f"image_rows[{prefix!r}] must hold row numbers in [0, {rows})")
        if len({index.shape[0] for index in tensors}) != len(tensors):
            raise ValueError(f"image_rows[{prefix!r}] has two indices of one length, which cannot be distinguished")
        return tuple(index.to(self._device) for index in tensors)
