"""Late fusion: one vector from those of a prompt's text and images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infra.contract.errors import ConfigurationError
from retrieval_service.embedders.base import FloatArray, normalise


@dataclass(frozen=True)
class LateFusion:
    """Combines the vectors of a prompt's parts: normalise(text_weight * text + image_weight * mean(images)).

    Only the first `max_images` images are used. A prompt without text is represented by its images, and vice versa.
    """

    text_weight: float = 0.7
    image_weight: float = 0.3
    max_images: int = 2

    def __post_init__(self) -> None:
        if min(self.text_weight, self.image_weight) < 0 or self.text_weight + self.image_weight <= 0:
            raise ConfigurationError(
                f"text_weight {self.text_weight} and image_weight {self.image_weight} must not be negative and "
                "not both 0"
            )
        if self.max_images < 0:
            raise ConfigurationError(f"max_query_images must not be negative, got {self.max_images}")

    def combine(self, text: FloatArray | None, images: FloatArray | None) -> FloatArray:
        """Return the vector, [dim], of length 1, of `text` [dim] and `images` [count, dim], at least one of them."""
        parts = []
        if text is not None:
            parts.append((self.text_weight, text.astype(np.float64)))
        if images is not None and len(images):
            parts.append((self.image_weight, images.mean(axis=0, dtype=np.float64)))
        if not parts:
            raise ValueError("neither a text vector nor image vectors")
        combined = parts[0][1] if len(parts) == 1 else parts[0][0] * parts[0][1] + parts[1][0] * parts[1][1]
        return normalise(combined)
