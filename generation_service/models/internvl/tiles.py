"""An image -> the tiles that InternVL sees (InternVL 1.5, arXiv 2404.16821, section 3.3)."""

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
    """Tiles of `size` pixels square, `least` to `most` an image; `thumbnail`: the whole image too, if there are two."""

    size: int
    least: int
    most: int
    thumbnail: bool = True
    mean: tuple[float, ...] = _IMAGENET_MEAN
    deviation: tuple[float, ...] = _IMAGENET_STD

    def at_most(self, tiles: int | None) -> Tiling:
        """Return it with another bound on an image's tiles (None: the same). Raises ConfigurationError."""
        if tiles is None:
            return self
        if tiles < self.least:
            raise ConfigurationError(f"max_tiles is {tiles}, below the {self.least} tiles this model needs an image")
        return Tiling(self.size, self.least, tiles, self.thumbnail, self.mean, self.deviation)

    def count(self, width: int, height: int) -> int:
        """Return how many tiles an image of that size is cut into, the thumbnail included."""
        found = int(self._processor.get_number_of_image_patches(height, width))
        return found if self.thumbnail or found == 1 else found - 1

    def tiles(self, image: Image) -> Tensor:
        """Return an RGB image [tiles, 3, size, size], normalised: the grid whose shape is nearest the image's.

        Row by row; the thumbnail last.
        """
        batch = self._processor(images=[image], return_tensors="np")
        found = torch.stack([torch.as_tensor(tile) for tile in batch["pixel_values"]])
        return found if self.thumbnail or len(found) == 1 else found[:-1]

    @cached_property
    def _processor(self) -> Any:
        return GotOcr2ImageProcessorPil(
            size={"height": self.size, "width": self.size},
            crop_to_patches=True,
            min_patches=self.least,
            max_patches=self.most,
            image_mean=list(self.mean),
            image_std=list(self.deviation),
        )
