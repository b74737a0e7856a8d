"""The logits of a loaded base model over a whole prompt."""

from __future__ import annotations

import torch
from torch import Tensor

from generation_service.execution.kv_cache import CacheShape, SlotKVCache
from generation_service.models.base import BaseModel, EncodedPrompt


@torch.inference_mode()
def prompt_logits(model: BaseModel, prompt: EncodedPrompt) -> Tensor:
    """Return the logits [T, vocab] of a whole prompt."""
    shape = model.description
    size = CacheShape(shape.layers, 1, shape.kv_heads, 512, shape.head_dim)
    view = SlotKVCache(size, torch.float32, shape.device).prefill_view(0, 0)
    hidden = model.forward(model.embed(prompt), prompt.positions[:, None], None, view)
    return model.logits(hidden[0])
