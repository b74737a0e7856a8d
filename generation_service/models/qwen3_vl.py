"""Qwen3-VL (2B, 4B, 8B, 32B; Instruct and Thinking) from its original folder.

Prompts are encoded like Qwen2-VL's, images with patches of 16 pixels. Text positions have three axes as before, with
the frequencies of the axes interleaved. The vision tower returns the features of some inner blocks too, which are
added to the image tokens after the first layers of the language model (DeepStack).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from generation_service.models.qwen2_vl import Qwen2VL, Qwen2VLFamily


class Qwen3VL(Qwen2VL):
    """A loaded Qwen3-VL."""

    def embed_images(self, pixels: Tensor, grids: Tensor) -> Tensor:
        """Return the embeddings of merged patches, then their features for each of the first layers, side by side."""
        features = self._image_features(pixels, grids)
        by_layer = (features.pooler_output, *features.deepstack_features)
        return torch.cat([torch.cat(list(images)) for images in by_layer], dim=-1)


class Qwen3VLFamily(Qwen2VLFamily):
    """Reads checkpoints of model_type `qwen3_vl`."""

    model_type = "qwen3_vl"
    title: ClassVar[str] = "Qwen3-VL"
    config_class: ClassVar[Any] = Qwen3VLConfig
    model_class: ClassVar[Any] = Qwen3VLForConditionalGeneration
    loaded_class: ClassVar[type[Qwen2VL]] = Qwen3VL
