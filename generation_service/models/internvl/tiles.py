"""Tiling of an image for InternVL (InternVL 1.5, arXiv 2404.16821, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from infra.contract.errors import ConfigurationError

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Tiling:
    """Cuts an image into `min_tiles` to `max_tiles` square tiles of `size` pixels.

    With `thumbnail`, an image of several tiles gets one more: the whole image, scaled down.
    """

    size: int
    min_tiles: int
    max_tiles: int
    thumbnail: bool = True
    mean: tuple[float, ...] = _IMAGENET_MEAN
    std: tuple[float, ...] = _IMAGENET_STD

    def with_max_tiles(self, tiles: int | None) -> Tiling:
        """Return a copy with another maximum (None: unchanged). Raises ConfigurationError below the minimum."""
        if tiles is None:
            return self
        if tiles < self.min_tiles:
            raise ConfigurationError(
                f"max_tiles is {tiles}, below the {self.min_tiles} tiles that this model needs per image"
            )
        return Tiling(self.size, self.min_tiles, tiles, self.thumbnail, self.mean, self.std)

    def count(self, width: int, height: int) -> int:
        """Return the number of tiles of an image of that size, thumbnail included."""
        count = int(self._processor.get_number_of_image_patches(height, width))
        return count if self.thumbnail or count == 1 else count - 1

    def tiles(self, image: Image) -> Tensor:
        """Return the normalised tiles [tiles, 3, size, size] of an RGB image, row by row, thumbnail last.

        The grid is the one whose aspect ratio is closest to the image's.
        """
        batch = self._processor(images=[image], return_tensors="np")
        tiles = torch.stack([torch.as_tensor(tile) for tile in batch["pixel_values"]])
        return tiles if self.thumbnail or len(tiles) == 1 else tiles[:-1]

    @cached_property
    def _processor(self) -> Any:
        return GotOcr2ImageProcessorPil(
            size={"height": self.size, "width": self.size},
            crop_to_patches=True,
            min_patches=self.min_tiles,
            max_patches=self.max_tiles,
            image_mean=list(self.mean),
            image_std=list(self.std),
        )
