"""Which row of the running step each input of a layer belongs to, and hence which adapters it gets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from generation_service.lora.mixture import ActiveRanks, RowWeights, active_ranks
from generation_service.lora.ranks import RankRange
from generation_service.lora.routed_rows import RoutedRows, RowIndex
from generation_service.lora.step_lora import Applied, Place
from generation_service.lora.weight_group import Shelf


@dataclass(frozen=True, eq=False)
class _Shared:
    """The product that the modules of one shelf share for one input."""

    shelf: Shelf
    input: Tensor
    product: list[Tensor]


class Routing:
    """The compositions of the forward pass that runs now. One per bank; set and read by the thread that owns it.

    Modules below a `by_image` prefix (the vision tower and its projector) see the images of the rows rather than the
    rows: with more than one row they need to be told which row each patch or tile belongs to. `published` are the
    ranges that hold an adapter; no other may be applied.
    """

    def __init__(
        self, published: Set[RankRange], device: torch.device, dtype: torch.dtype, by_image: Sequence[str] = ()
    ) -> None:
        self._published = published
        self._device = device
        self._weights_dtype = torch.promote_types(dtype, torch.float32)
        self._by_image = tuple(by_image)
        self._rows: list[dict[RankRange, float]] = []
        self._last: ActiveRanks | None = None
        self._shared: _Shared | None = None
        self.active: Applied | None = None

    def begin(self, rows: Sequence[RowWeights], image_rows: Mapping[str, Sequence[RowIndex]] | None = None) -> None:
        """Route the next forward passes: `rows[n]` is the composition of row n of the batch.

        A module's input has the rows as its leading dimension, [rows, ..., in]; one row alone applies to all of any
        input. `image_rows` gives, for each `by_image` prefix, the row of every leading element of the inputs below
        it: one index for each leading length that occurs (the patches, the merged patches). Raises ValueError for
        ranges that hold no adapter, indices out of range, unknown prefixes, or two indices of one length below one
        prefix.
        """
        self.idle()
        self.check(rows)
        ranks = self._active(rows)
        if ranks is not None:
            indices = {prefix: self._checked(prefix, given, len(rows)) for prefix, given in (image_rows or {}).items()}
            self.active = RoutedRows(ranks, indices)

    def idle(self) -> None:
        """Apply nothing: the base model alone, at no cost."""
        self.active = None
        self._shared = None

    @contextmanager
    def step(
        self, rows: Sequence[RowWeights], image_rows: Mapping[str, Sequence[RowIndex]] | None = None
    ) -> Iterator[None]:
        """`begin` on entry, `idle` on exit."""
        self.begin(rows, image_rows)
        try:
            yield
        finally:
            self.idle()

    @contextmanager
    def applying(self, applied: Applied | None) -> Iterator[None]:
        """Apply what was made ready elsewhere, until exit."""
        self.active = applied
        try:
            yield
        finally:
            self.idle()

    def shrunk(self, input: Tensor, x: Tensor, place: Place, applied: Applied) -> list[Tensor]:
        """Return the weighted product with A of `input`, which is x in the bank's dtype, for the modules of a shelf.

        The first of them to see the very same tensor makes it for all; it is held until another shelf's turn, or the
        end of the step.
        """
        if len(place.shelf.paths) == 1:
            return applied.shrink(x, place)
        shared = self._shared
        if shared is None or shared.shelf is not place.shelf or shared.input is not input:
            shared = self._shared = _Shared(place.shelf, input, applied.shrink(x, place))
        return shared.product

    def check(self, rows: Sequence[RowWeights]) -> None:
        """Raise ValueError when a row applies a range that holds no adapter."""
        for owned in {owned for row in rows for owned in row}:
            if owned not in self._published:
                raise ValueError(f"{owned} holds no adapter of this bank: it was released, or never written")

    def image_prefix(self, path: str) -> str | None:
        """Return the `by_image` prefix that the module at `path` is below, or None."""
        return next((prefix for prefix in self._by_image if path == prefix or path.startswith(f"{prefix}.")), None)

    def _active(self, rows: Sequence[RowWeights]) -> ActiveRanks | None:
        """Return what `rows` apply; the same as the step before when nothing changed, as in most decode steps."""
        given = [dict(row) for row in rows]
        if given != self._rows:
            self._last = active_ranks(rows, self._device, self._weights_dtype)
            self._rows = given
        return self._last

    def _checked(self, prefix: str, indices: Sequence[RowIndex], rows: int) -> tuple[Tensor, ...]:
        if prefix not in self._by_image:
            raise ValueError(f"image_rows names {prefix!r}; this bank routes by image below {list(self._by_image)}")
        tensors = [torch.as_tensor(index, dtype=torch.int64) for index in indices]
        if any(index.dim() != 1 or bool(((index < 0) | (index >= rows)).any()) for index in tensors):
            raise ValueError(f"image_rows[{prefix!r}] must hold row numbers in [0, {rows})")
        if len({index.shape[0] for index in tensors}) != len(tensors):
            raise ValueError(f"image_rows[{prefix!r}] has two indices of one length: they cannot be told apart")
        return tuple(index.to(self._device) for index in tensors)
