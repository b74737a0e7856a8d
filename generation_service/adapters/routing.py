"""Which row of the running step each input of a layer belongs to, and hence which adapters it gets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager

import torch
from torch import Tensor

from generation_service.adapters.ranks import RankRange
from generation_service.compose.mixture import ActiveRanks, RowWeights, active_ranks
from generation_service.kernels.torch_ops import RankMask

RowIndex = Sequence[int] | Tensor
"""For each leading element of an input (patch, merged patch or tile), the row of the batch it belongs to."""


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
        self._mask_dtype = torch.promote_types(dtype, torch.float32)
        self._by_image = tuple(by_image)
        self._image_rows: dict[str, tuple[Tensor, ...]] = {}
        self._masks: dict[tuple[str | None, int, int], RankMask] = {}
        self._rows: list[dict[RankRange, float]] = []
        self._last: ActiveRanks | None = None
        self.active: ActiveRanks | None = None

    def begin(self, rows: Sequence[RowWeights], image_rows: Mapping[str, Sequence[RowIndex]] | None = None) -> None:
        """Route the next forward passes: `rows[n]` is the composition of row n of the batch.

        A module's input has the rows as its leading dimension, [rows, ..., in]; one row alone applies to all of any
        input. `image_rows` gives, for each `by_image` prefix, the row of every leading element of the inputs below
        it: one index for each leading length that occurs (the patches, the merged patches). Raises ValueError for
        ranges that hold no adapter, indices out of range, unknown prefixes, or two indices of one length below one
        prefix.
        """
        self.idle()
        for owned in {owned for row in rows for owned in row}:
            if owned not in self._published:
                raise ValueError(f"{owned} holds no adapter of this bank: it was released, or never written")
        self.active = self._active(rows)
        if self.active is not None:
            try:
                self._image_rows = {
                    prefix: self._checked(prefix, indices, len(rows)) for prefix, indices in (image_rows or {}).items()
                }
            except ValueError:
                self.idle()
                raise

    def idle(self) -> None:
        """Apply nothing: the base model alone, at no cost."""
        self.active = None
        self._image_rows = {}
        self._masks = {}

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

    def image_prefix(self, path: str) -> str | None:
        """Return the `by_image` prefix that the module at `path` is below, or None."""
        return next((prefix for prefix in self._by_image if path == prefix or path.startswith(f"{prefix}.")), None)

    def mask_for(self, path: str, image_prefix: str | None, x: Tensor) -> RankMask:
        """Return the mask for input x [leading, ..., in] of the module at `path`.

        Raises ValueError when the leading elements of x cannot be told apart by row: no answer beats a wrong one.
        """
        leading = 1 if x.dim() == 1 else x.shape[0]
        known = self._masks.get((image_prefix, leading, x.dim()))
        if known is not None:
            return known
        mask = self._masks[image_prefix, leading, x.dim()] = self._mask_for(path, image_prefix, x)
        return mask

    def _active(self, rows: Sequence[RowWeights]) -> ActiveRanks | None:
        """Return the mask of `rows`; the one of the step before when nothing changed, as in most decode steps."""
        given = [dict(row) for row in rows]
        if given != self._rows:
            self._last = active_ranks(rows, self._device, self._mask_dtype)
            self._rows = given
        return self._last

    def _mask_for(self, path: str, image_prefix: str | None, x: Tensor) -> RankMask:
        active = self.active
        assert active is not None, "mask_for is for an active step only"
        mask, unused = active.mask, active.unused
        if active.rows == 1:
            return RankMask(mask[0], unused[0])
        leading = x.shape[0]
        if image_prefix is not None:
            index = self._index_of(path, image_prefix, leading)
            mask, unused = mask.index_select(0, index), unused.index_select(0, index)
        elif leading != active.rows or x.dim() < 3:
            raise ValueError(
                f"{path} got an input of shape {list(x.shape)} in a step of {active.rows} rows: its leading dimension "
                "must be the rows of the batch, [rows, tokens, features]"
            )
        shape = (leading, *([1] * (x.dim() - 2)), mask.shape[1])
        return RankMask(mask.view(shape), unused.view(shape))

    def _index_of(self, path: str, prefix: str, leading: int) -> Tensor:
        given = self._image_rows.get(prefix, ())
        for index in given:
            if index.shape[0] == leading:
                return index
        raise ValueError(
            f"{path} got {leading} patches or tiles of several rows' images, and the step was not told whose they are "
            f"(image_rows[{prefix!r}] has lengths {[len(index) for index in given]}): give an index of that length, "
            "or prefill one row at a time"
        )

    def _checked(self, prefix: str, indices: Sequence[RowIndex], rows: int) -> tuple[Tensor, ...]:
        if prefix not in self._by_image:
            raise ValueError(f"image_rows names {prefix!r}; this bank routes by image below {list(self._by_image)}")
        tensors = [torch.as_tensor(index, dtype=torch.int64) for index in indices]
        if any(index.dim() != 1 or bool(((index < 0) | (index >= rows)).any()) for index in tensors):
            raise ValueError(f"image_rows[{prefix!r}] must hold row numbers in [0, {rows})")
        if len({index.shape[0] for index in tensors}) != len(tensors):
            raise ValueError(f"image_rows[{prefix!r}] has two indices of one length: they cannot be told apart")
        return tuple(index.to(self._device) for index in tensors)
