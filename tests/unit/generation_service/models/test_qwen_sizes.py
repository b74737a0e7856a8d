"""Qwen's published sizes: their configs describe models of as many parameters as published."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from generation_service.models.registry import family_of
from tests.support.checkpoints.qwen2_5_vl import write_qwen2_5_vl
from tests.support.checkpoints.qwen2_vl import write_qwen2_vl
from tests.support.checkpoints.qwen3_vl import write_qwen3_vl

_MROPE = {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "rope_theta": 1000000.0}
_SEVEN = {
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
}
_TWO = {
    "hidden_size": 1536,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "intermediate_size": 8960,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
_THREE = {
    "hidden_size": 2048,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "intermediate_size": 11008,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Real:
    """A published model: how its config differs from the tiny one's, and what its folder holds."""

    write: Callable[[Path], Path]
    parameters: int
    modules: int
    cache_bytes_a_token: int
    config: dict[str, Any]
    vision: dict[str, Any]


def _qwen2_vl(text: dict[str, Any], **expected: int) -> Real:
    vision = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "hidden_size": text["hidden_size"]}
    return Real(write_qwen2_vl, config=text | _MROPE, vision=vision, **expected)


def _qwen2_5_vl(text: dict[str, Any], **expected: int) -> Real:
    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": text["hidden_size"],
        "fullatt_block_indexes": [7, 15, 23, 31],
        "window_size": 112,
    }
    return Real(write_qwen2_5_vl, config=text | _MROPE, vision=vision, **expected)


def _qwen3_vl(hidden: int, layers: int, heads: int, inner: int, large_tower: bool, **expected: int) -> Real:
    tower = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}
    small = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]}
    text = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": inner,
        "vocab_size": 151936,
        "tie_word_embeddings": not large_tower,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
        "rope_theta": 5000000,
    }
    vision = (tower if large_tower else small) | {
        "num_heads": 16,
        "out_hidden_size": hidden,
        "num_position_embeddings": 2304,
    }
    config = {"text_config": text, "tie_word_embeddings": not large_tower}
    return Real(write_qwen3_vl, config=config, vision=vision, **expected)


MODELS = {
    "Qwen2-VL-7B": _qwen2_vl(_SEVEN, parameters=8_291_375_616, modules=326, cache_bytes_a_token=57_344),
    "Qwen2-VL-2B": _qwen2_vl(_TWO, parameters=2_208_985_600, modules=326, cache_bytes_a_token=28_672),
    "Qwen2.5-VL-7B": _qwen2_5_vl(_SEVEN, parameters=8_292_166_656, modules=358, cache_bytes_a_token=57_344),
    "Qwen3-VL-2B": _qwen3_vl(
        2048, 28, 16, 6144, False, parameters=2_127_532_032, modules=300, cache_bytes_a_token=114_688
    ),
    "Qwen3-VL-4B": _qwen3_vl(
        2560, 36, 32, 9728, False, parameters=4_437_815_808, modules=356, cache_bytes_a_token=147_456
    ),
    "Qwen3-VL-8B": _qwen3_vl(
        4096, 36, 32, 12288, True, parameters=8_767_123_696, modules=368, cache_bytes_a_token=147_456
    ),
    "Qwen2.5-VL-3B": _qwen2_5_vl(_THREE, parameters=3_754_622_976, modules=414, cache_bytes_a_token=36_864),
}


@pytest.mark.parametrize("real", MODELS.values(), ids=MODELS)
def test_published_config_has_published_sizes(tmp_path: Path, real: Real) -> None:
    folder = real.write(tmp_path / "model")
    written = json.loads((folder / "config.json").read_text())
    config = written | real.config
    if "text_config" in config:
        config["text_config"] = written["text_config"] | real.config["text_config"]
    config["vision_config"] |= real.vision
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").unlink()

    architecture = family_of(folder).describe(folder)

    assert architecture.parameters == real.parameters
    assert len(architecture.targets) == real.modules
    assert 2 * architecture.cache_values(1) == real.cache_bytes_a_token
