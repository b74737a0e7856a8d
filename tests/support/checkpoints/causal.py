"""Tiny random text-only checkpoints of every served architecture, saved from the classes of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from generation_service.models.causal.architectures import ARCHITECTURES
from tests.support.checkpoints.qwen2_vl import write_folder

WINDOW = 24
"""Shorter than the tests' prompts, so that a mask without a window changes the answers."""

SIZES: Mapping[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "torch_dtype": "float32",
    "pad_token_id": 0,
}
_LAYER_TYPES = ["sliding_attention", "full_attention"] * 2
SPECIAL_CASES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("llama", {"head_dim": 24, "attention_bias": True, "rope_theta": 500000.0}),
    "llama 3 rope, tied head": (
        "llama",
        {
            "tie_word_embeddings": True,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "llama, dynamic rope": ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
    "mistral with a window": ("mistral", {"sliding_window": WINDOW, "head_dim": 24}),
    "mistral without a window": ("mistral", {"sliding_window": None}),
    "qwen2 with biases": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2, yarn, upper layers slide": (
        "qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "max_window_layers": 2,
            "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        },
    ),
    "qwen3 with q and k norms": ("qwen3", {"head_dim": 24}),
    "gemma": ("gemma", {"head_dim": 24}),
    "gemma 2 with soft caps": (
        "gemma2",
        {
            "head_dim": 24,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
            "layer_types": _LAYER_TYPES,
        },
    ),
    "gemma 3 with two ropes": (
        "gemma3_text",
        {
            "head_dim": 24,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 20,
            "layer_types": _LAYER_TYPES,
            "rope_theta": 1000000.0,
            "rope_local_base_freq": 10000.0,
        },
    ),
    "phi 3 with a window, partial rotary": (
        "phi3",
        {"sliding_window": WINDOW, "partial_rotary_factor": 0.5, "resid_pdrop": 0.0},
    ),
    "phi 3, longrope": (
        "phi3",
        {
            "original_max_position_embeddings": 256,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": [1.0 + number / 8 for number in range(8)],
                "long_factor": [2.0 + number for number in range(8)],
            },
        },
    ),
    "smollm 3 with layers without rope": ("smollm3", {"no_rope_layer_interval": 2}),
    "olmo 2": ("olmo2", {}),
}
"""The features of published checkpoints: name -> model_type, and the fields of its config.json."""


def write_causal(
    folder: Path, model_type: str, fields: Mapping[str, Any] | None = None, *, shards: int = 1, seed: int = 0
) -> Path:
    """Write a checkpoint of `model_type` whose config has `fields`, with a tokenizer and a chat template."""
    row = next(row for row in ARCHITECTURES if row.model_type == model_type)

    def config(special: Mapping[str, int], vocab: int) -> dict[str, Any]:
        content = {"model_type": model_type, "eos_token_id": special["<|im_end|>"], "vocab_size": vocab}
        return content | {"architectures": [row.model_class.__name__]} | dict(SIZES) | dict(fields or {})

    def weights(vocab: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        content = config({"<|im_end|>": 2}, vocab)
        model = row.model_class(row.config_class(**content, initializer_range=0.2))
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith(".bias"):  # Initialised to a constant, which would hide mistakes.
                torch.nn.init.normal_(parameter, mean=float("norm" in name and "gemma" not in model_type), std=0.2)
        tied = set(getattr(model, "_tied_weights_keys", None) or ()) if model.config.tie_word_embeddings else set()
        return {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in tied}

    return write_folder(folder, config, weights, shards=shards, dtype=torch.float32)
