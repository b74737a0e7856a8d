"""Tiny random Qwen2.5-VL checkpoints in the published layout, written without transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.support.checkpoints.qwen2_vl import (
    Draw,
    TinyShape,
    language_tensors,
    merger_tensors,
    qwen_config,
    write_folder,
)


@dataclass(frozen=True)
class TinyShape25(TinyShape):
    """Sizes of a tiny Qwen2.5-VL. Windows span `window_size` pixels, except in the blocks of `full_attention`."""

    vision_depth: int = 3
    vision_intermediate: int = 40
    window_size: int = 56
    full_attention: tuple[int, ...] = (1,)


def write_qwen2_5_vl(
    folder: Path,
    shape: TinyShape25 | None = None,
    *,
    seed: int = 0,
    shards: int = 1,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a whole checkpoint folder and return it."""
    shape = shape or TinyShape25()

    def config(special: Mapping[str, int], vocab: int) -> dict[str, Any]:
        return qwen_config(shape, special, vocab, dtype, "Qwen/Qwen2.5-VL-tiny") | {
            "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            "model_type": "qwen2_5_vl",
            "vision_config": _vision_config(shape),
        }

    return write_folder(folder, config, lambda vocab: tensors(shape, vocab, seed), shards=shards, dtype=dtype)


def tensors(shape: TinyShape25, vocab: int, seed: int) -> dict[str, Tensor]:
    """Return random weights under the original names."""
    draw = Draw(seed)
    width, inner = shape.vision_width, shape.vision_intermediate
    found = language_tensors(shape, vocab, draw)
    found["visual.patch_embed.proj.weight"] = draw.linear(width, 3 * 2 * 14 * 14).reshape(width, 3, 2, 14, 14)
    for block in range(shape.vision_depth):
        at = f"visual.blocks.{block}"
        found |= {f"{at}.{norm}.weight": draw.vector(width, 1) for norm in ("norm1", "norm2")}
        found |= draw.affine(f"{at}.attn.qkv", 3 * width, width) | draw.affine(f"{at}.attn.proj", width, width)
        for name, (rows, columns) in {"gate": (inner, width), "up": (inner, width), "down": (width, inner)}.items():
            found |= draw.affine(f"{at}.mlp.{name}_proj", rows, columns)
    found["visual.merger.ln_q.weight"] = draw.vector(width, 1)
    return found | merger_tensors(width, shape.hidden, draw)


def _vision_config(shape: TinyShape25) -> dict[str, Any]:
    return {
        "depth": shape.vision_depth,
        "hidden_act": "silu",
        "hidden_size": shape.vision_width,
        "intermediate_size": shape.vision_intermediate,
        "num_heads": shape.vision_heads,
        "in_chans": 3,
        "out_hidden_size": shape.hidden,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": shape.window_size,
        "fullatt_block_indexes": list(shape.full_attention),
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    }
