"""Qwen2.5-VL (3B, 7B, 32B, 72B Instruct) from its original folder.

It reads prompts and images as Qwen2-VL does. Its vision tower differs: gated MLPs, RMS norms, and attention within
windows of 112 x 112 pixels in all but some blocks. For that the tower takes the patches of an image out of reading
order and puts the merged ones back at its end. The patches of one image stay together and the images in their order,
so an index of whose image a patch is (`by_image`) holds inside the tower too; one of which patch it is would not.
"""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from generation_service.models.qwen2_vl import Qwen2VLFamily


class Qwen25VLFamily(Qwen2VLFamily):
    """Reads checkpoints whose config.json says `qwen2_5_vl`."""

    model_type = "qwen2_5_vl"
    title: ClassVar[str] = "Qwen2.5-VL"
    config_class: ClassVar[Any] = Qwen2_5_VLConfig
    model_class: ClassVar[Any] = Qwen2_5_VLForConditionalGeneration
