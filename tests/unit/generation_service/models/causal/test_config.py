"""config.json of text-only models: what is refused by name, and how long a sequence may be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from generation_service.models.causal.architectures import ARCHITECTURES
from generation_service.models.causal.config import layer_windows, max_positions, read_causal_config
from infra.contract.errors import CheckpointError

LONGROPE = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
SHAPE = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 4, "max_position_embeddings": 512}


def read(folder: Path, model_type: str, **fields: Any) -> tuple[Any, Any]:
    row = next(row for row in ARCHITECTURES if row.model_type == model_type)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type} | SHAPE | fields))
    return read_causal_config(folder, row), row


@pytest.mark.parametrize(
    ("model_type", "fields", "named"),
    [
        ("llama", {"num_experts": 8}, "num_experts is 8"),
        ("llama", {"num_local_experts": 4}, "num_local_experts is 4"),
        ("llama", {"attention_chunk_size": 128}, "attention_chunk_size is 128"),
        ("qwen2", {"use_qk_norm": True}, "use_qk_norm is True"),
        ("llama", {"logits_scaling": 8.0}, "logits_scaling is 8.0"),
        ("llama", {"rope_scaling": {"rope_type": "foo", "factor": 2.0}}, "rope_type is foo"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("mistral", {"layer_types": ["sliding_attention", "full_attention"] * 2}, "layer_types"),
        ("qwen2", {"layer_types": ["chunked_attention", "full_attention"] * 2}, "layers of type chunked_attention"),
        ("mistral", {"sliding_window": 0}, "sliding_window is 0"),
        ("gemma2", {"sliding_window": -1}, "sliding_window is -1"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(
    model_type: str, fields: dict[str, Any], named: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=named):
        read(tmp_path, model_type, **fields)


@pytest.mark.parametrize(
    "fields",
    [{"qk_norm": False, "num_experts": 0, "logits_scaling": 1.0}, {"unsloth_version": "2026.1"}, {"sliding_window": 9}],
)
def test_fields_without_effect_are_accepted(fields: dict[str, Any], tmp_path: Path) -> None:
    config, row = read(tmp_path, "llama", **fields)
    assert layer_windows(config, row) == (None,) * 4


@pytest.mark.parametrize(
    ("model_type", "fields", "longest"),
    [
        ("llama", {}, 512),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 4.0}}, 512),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}, 512),
        ("mistral", {"sliding_window": 64}, 512),
        ("phi3", {"rope_scaling": LONGROPE, "original_max_position_embeddings": 256}, 256),
        ("qwen2", {"rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 512}}, 2048),
        ("qwen3", {"rope_scaling": {"type": "yarn", "factor": 2, "original_max_position_embeddings": 128}}, 512),
    ],
)
def test_longest_sequence_has_one_set_of_frequencies(
    model_type: str, fields: dict[str, Any], longest: int, tmp_path: Path
) -> None:
    assert max_positions(read(tmp_path, model_type, **fields)[0]) == longest


def test_windows_are_those_of_the_layers(tmp_path: Path) -> None:
    assert layer_windows(*read(tmp_path, "gemma3_text", sliding_window=8, sliding_window_pattern=2)) == (8, None) * 2
    upper = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}
    assert layer_windows(*read(tmp_path, "qwen2", **upper)) == (None, None, None, 8)
    assert layer_windows(*read(tmp_path, "qwen2", **upper | {"use_sliding_window": False})) == (None,) * 4
    assert layer_windows(*read(tmp_path, "phi3", sliding_window=8)) == (8,) * 4
