"""Images for tests."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from infra.contract.prompt import ImagePart


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return an RGB image of smooth colours and noise."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((width, height))
    noise = draw.integers(-20, 20, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(coarse, dtype=np.int64) + noise, 0, 255).astype(np.uint8))


def png(image: Image.Image) -> bytes:
    """Return the image as a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def png_part(width: int, height: int, seed: int = 0) -> ImagePart:
    """Return an image as a part of a prompt."""
    return ImagePart(png(picture(width, height, seed)), "image/png")
