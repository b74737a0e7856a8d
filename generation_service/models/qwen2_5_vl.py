"""Qwen2.5-VL (3B, 7B, 32B, 72B Instruct) from its original folder.

Prompts and images are encoded like Qwen2-VL's. The vision tower differs: gated MLPs, RMS norms, and attention within
windows of 112 x 112 pixels in all but a few blocks. The tower therefore reorders the patches of an image and restores
the order of the merged ones at its end. The patches of one image stay together and the images keep their order, so an
index that maps patches to rows (`by_image`) is valid inside the tower too; an index of single patches would not be.
"""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from generation_service.models.qwen2_vl import Qwen2VLFamily


class Qwen25VLFamily(Qwen2VLFamily):
    """Reads checkpoints of model_type `qwen2_5_vl`."""

    model_type = "qwen2_5_vl"
    title: ClassVar[str] = "Qwen2.5-VL"
    config_class: ClassVar[Any] = Qwen2_5_VLConfig
    model_class: ClassVar[Any] = Qwen2_5_VLForConditionalGeneration
