"""What a layer asks of the running step: whether it is changed, and by what."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from generation_service.lora.weight_group import Shelf


class Place:
    """Where a module stands: its path, its shelf, its number there, and the `by_image` prefix it is below."""

    def __init__(self, path: str, shelf: Shelf, member: int, image_prefix: str | None) -> None:
        self.path, self.shelf, self.member, self.image_prefix = path, shelf, member, image_prefix


class Applied(Protocol):
    """The weighted adapters of a forward pass: delta = (x A^T * weights) B, in two halves."""

    def touches(self, place: Place) -> bool:
        """Return whether the module's output can differ from the base layer's."""

    def shrink(self, x: Tensor, place: Place) -> list[Tensor]:
        """Return x A^T, weighted, for the shelf's M modules: [M, T, R] a portion. x [..., in] as the layer got it."""

    def expand_(self, out: Tensor, shrunk: list[Tensor], place: Place) -> None:
        """Add what the module makes of it to out [..., out], contiguous, in place."""
