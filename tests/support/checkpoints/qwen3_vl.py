"""Tiny random Qwen3-VL checkpoints in the published layout, written without transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.support.checkpoints.qwen2_vl import Draw, TinyShape, write_folder

PATCH = 16


@dataclass(frozen=True)
class TinyShape3(TinyShape):
    """Sizes of a tiny Qwen3-VL. The tower's blocks `deepstack` feed the first layers of the language model."""

    head_size: int = 20
    mrope_section: tuple[int, int, int] = (4, 3, 3)
    vision_depth: int = 4
    vision_intermediate: int = 40
    position_side: int = 6
    deepstack: tuple[int, ...] = (0, 2)

    @property
    def head_dim(self) -> int:
        """Size of an attention head, which is not hidden / heads."""
        return self.head_size


def write_qwen3_vl(
    folder: Path,
    shape: TinyShape3 | None = None,
    *,
    seed: int = 0,
    shards: int = 1,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a whole checkpoint folder and return it."""
    shape = shape or TinyShape3()

    def config(special: Mapping[str, int], vocab: int) -> dict[str, Any]:
        return qwen3_vl_config(shape, special, vocab, dtype)

    write_folder(folder, config, lambda vocab: tensors(shape, vocab, seed), shards=shards, dtype=dtype)
    (folder / "preprocessor_config.json").write_text(json.dumps(_PREPROCESSOR))
    return folder


def tensors(shape: TinyShape3, vocab: int, seed: int) -> dict[str, Tensor]:
    """Return random weights under the original names."""
    draw = Draw(seed)
    return _language_tensors(shape, vocab, draw) | _vision_tensors(shape, draw)


def _language_tensors(shape: TinyShape3, vocab: int, draw: Draw) -> dict[str, Tensor]:
    hidden, query, kv, wide = (
        shape.hidden,
        shape.heads * shape.head_dim,
        shape.kv_heads * shape.head_dim,
        shape.intermediate,
    )
    linears = {
        "self_attn.q_proj": (query, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, query),
        "mlp.gate_proj": (wide, hidden),
        "mlp.up_proj": (wide, hidden),
        "mlp.down_proj": (hidden, wide),
    }
    found = {"model.language_model.embed_tokens.weight": draw.normal(vocab, hidden)}
    for layer in range(shape.layers):
        at = f"model.language_model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"{at}.{norm}.weight"] = draw.vector(hidden, 1)
        for norm in ("q_norm", "k_norm"):
            found[f"{at}.self_attn.{norm}.weight"] = draw.vector(shape.head_dim, 1)
        found |= {f"{at}.{name}.weight": draw.linear(*size) for name, size in linears.items()}
    found["model.language_model.norm.weight"] = draw.vector(hidden, 1)
    if not shape.tied:
        found["lm_head.weight"] = draw.linear(vocab, hidden)
    return found


def _vision_tensors(shape: TinyShape3, draw: Draw) -> dict[str, Tensor]:
    width, inner, merged = shape.vision_width, shape.vision_intermediate, 4 * shape.vision_width
    values = 3 * 2 * PATCH**2
    found = draw.affine("model.visual.patch_embed.proj", width, values)
    found["model.visual.patch_embed.proj.weight"] = found["model.visual.patch_embed.proj.weight"].reshape(
        width, 3, 2, PATCH, PATCH
    )
    found["model.visual.pos_embed.weight"] = draw.normal(shape.position_side**2, width)
    for block in range(shape.vision_depth):
        at = f"model.visual.blocks.{block}"
        for norm in ("norm1", "norm2"):
            found |= {f"{at}.{norm}.weight": draw.vector(width, 1), f"{at}.{norm}.bias": draw.vector(width)}
        found |= draw.affine(f"{at}.attn.qkv", 3 * width, width) | draw.affine(f"{at}.attn.proj", width, width)
        found |= draw.affine(f"{at}.mlp.linear_fc1", inner, width) | draw.affine(f"{at}.mlp.linear_fc2", width, inner)
    mergers = {f"model.visual.deepstack_merger_list.{index}": merged for index in range(len(shape.deepstack))}
    for at, normed in {"model.visual.merger": width, **mergers}.items():
        found |= {f"{at}.norm.weight": draw.vector(normed, 1), f"{at}.norm.bias": draw.vector(normed)}
        found |= draw.affine(f"{at}.linear_fc1", merged, merged)
        found |= draw.affine(f"{at}.linear_fc2", shape.hidden, merged)
    return found


_PREPROCESSOR = {
    "size": {"longest_edge": 16777216, "shortest_edge": 4096},
    "patch_size": PATCH,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "Qwen3VLProcessor",
    "image_processor_type": "Qwen2VLImageProcessorFast",
}


def qwen3_vl_config(shape: TinyShape3, special: Mapping[str, int], vocab: int, dtype: torch.dtype) -> dict[str, Any]:
    """Return config.json."""
    stored = str(dtype).removeprefix("torch.")
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "image_token_id": special["<|image_pad|>"],
        "model_type": "qwen3_vl",
        "text_config": {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": special["<|endoftext|>"],
            "dtype": stored,
            "eos_token_id": special["<|im_end|>"],
            "head_dim": shape.head_dim,
            "hidden_act": "silu",
            "hidden_size": shape.hidden,
            "initializer_range": 0.02,
            "intermediate_size": shape.intermediate,
            "max_position_embeddings": 4096,
            "model_type": "qwen3_vl_text",
            "num_attention_heads": shape.heads,
            "num_hidden_layers": shape.layers,
            "num_key_value_heads": shape.kv_heads,
            "rms_norm_eps": 1e-06,
            "rope_scaling": {
                "mrope_interleaved": True,
                "mrope_section": list(shape.mrope_section),
                "rope_type": "default",
            },
            "rope_theta": shape.rope_theta,
            "tie_word_embeddings": shape.tied,
            "use_cache": True,
            "vocab_size": vocab,
        },
        "tie_word_embeddings": shape.tied,
        "transformers_version": "4.57.0.dev0",
        "video_token_id": special["<|video_pad|>"],
        "vision_config": {
            "deepstack_visual_indexes": list(shape.deepstack),
            "depth": shape.vision_depth,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": shape.vision_width,
            "in_channels": 3,
            "initializer_range": 0.02,
            "intermediate_size": shape.vision_intermediate,
            "model_type": "qwen3_vl",
            "num_heads": shape.vision_heads,
            "num_position_embeddings": shape.position_side**2,
            "out_hidden_size": shape.hidden,
            "patch_size": PATCH,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        "vision_end_token_id": special["<|vision_end|>"],
        "vision_start_token_id": special["<|vision_start|>"],
    }
