"""The shapes of the real models: their configs' numbers alone give the published parameter counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from generation_service.models.registry import family_of
from tests.checkpoints.internvl2 import write_internvl2
from tests.checkpoints.qwen2_5_vl import write_qwen2_5_vl
from tests.checkpoints.qwen2_vl import write_qwen2_vl

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
_INTERNLM2 = {
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "intermediate_size": 8192,
    "vocab_size": 92553,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
}
_INTERNVIT = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "image_size": 448,
}


@dataclass(frozen=True)
class Real:
    """A published model: how its config differs from the tiny one's, and what its folder holds."""

    write: Callable[[Path], Path]
    parameters: int
    modules: int
    cache_bytes_a_token: int
    config: dict[str, Any]
    nested: dict[str, dict[str, Any]] = field(default_factory=dict)


def _qwen2_vl(text: dict[str, Any], **expected: int) -> Real:
    vision = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "hidden_size": text["hidden_size"]}
    return Real(write_qwen2_vl, config=text | _MROPE, nested={"vision_config": vision}, **expected)


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
    return Real(write_qwen2_5_vl, config=text | _MROPE, nested={"vision_config": vision}, **expected)


MODELS = {
    "Qwen2-VL-7B": _qwen2_vl(_SEVEN, parameters=8_291_375_616, modules=326, cache_bytes_a_token=57_344),
    "Qwen2-VL-2B": _qwen2_vl(_TWO, parameters=2_208_985_600, modules=326, cache_bytes_a_token=28_672),
    "Qwen2.5-VL-7B": _qwen2_5_vl(_SEVEN, parameters=8_292_166_656, modules=358, cache_bytes_a_token=57_344),
    "Qwen2.5-VL-3B": _qwen2_5_vl(_THREE, parameters=3_754_622_976, modules=414, cache_bytes_a_token=36_864),
    "InternVL2-2B": Real(
        write_internvl2,
        parameters=2_205_754_368,
        modules=314,
        cache_bytes_a_token=98_304,
        config={"force_image_size": 448},
        nested={"llm_config": _INTERNLM2, "vision_config": _INTERNVIT},
    ),
}


@pytest.mark.parametrize("real", MODELS.values(), ids=MODELS)
def test_a_real_models_config_describes_the_published_model(tmp_path: Path, real: Real) -> None:
    folder = real.write(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text()) | real.config
    for part, values in real.nested.items():
        config[part] |= values
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").unlink()

    outline = family_of(folder).describe(folder)

    assert outline.parameters == real.parameters
    assert len(outline.targets) == real.modules
    assert 2 * outline.cache_values(1) == real.cache_bytes_a_token
