"""InternVL2's published configs describe models with the published parameter counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from generation_service.models.registry import family_of
from tests.support.checkpoints.internvl2 import TinyInternVL, internvl2_config

VISION: dict[str, Any] = {"vision_width": 1024, "vision_depth": 24, "vision_heads": 16, "image_size": 448}
LONG = {
    "type": "su",
    "short_factor": [1.0 + 0.02 * step for step in range(48)],
    "long_factor": [1.0 + step for step in range(48)],
}
SIZES = {
    "1B": (TinyInternVL("qwen2", 896, 24, 14, 2, 4864, max_positions=32768, **VISION), 151655, 938_158_976),
    "2B": (TinyInternVL("internlm2", 2048, 24, 16, 8, 8192, max_positions=32768, **VISION), 92553, 2_205_754_368),
    "4B": (
        TinyInternVL("phi3", 3072, 32, 32, 32, 8192, max_positions=131072, rope_scaling=LONG, **VISION),
        32020,
        4_146_855_936,
    ),
    "8B": (TinyInternVL("internlm2", 4096, 32, 32, 8, 14336, max_positions=32768, **VISION), 92553, 8_075_365_376),
}


@pytest.mark.parametrize(("shape", "vocab", "parameters"), SIZES.values(), ids=SIZES)
def test_published_size_has_published_parameter_count(
    tmp_path: Path, shape: TinyInternVL, vocab: int, parameters: int
) -> None:
    config = internvl2_config(shape, vocab, torch.bfloat16, "OpenGVLab/InternVL2")
    if shape.language == "phi3":
        config["llm_config"]["original_max_position_embeddings"] = 4096
    (tmp_path / "config.json").write_text(json.dumps(config))
    architecture = family_of(tmp_path).describe(tmp_path)
    assert architecture.parameters == parameters
    assert architecture.dtype == torch.bfloat16
    assert architecture.head_dim == shape.head_dim
    assert architecture.max_positions == (4096 if shape.language == "phi3" else 32768)
    assert len(architecture.targets) == shape.layers * (4 if shape.language == "phi3" else 7) + 24 * 6 + 2
