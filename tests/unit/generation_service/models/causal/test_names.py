"""Module names in adapters of text-only models."""

from __future__ import annotations

import pytest
import torch

from generation_service.models.causal.names import CausalNames

LAYER = "model.layers.3"
SPLIT = {f"{LAYER}.self_attn.{name}_proj": (8, rows) for name, rows in {"q": 8, "k": 4, "v": 4, "o": 8}.items()} | {
    f"{LAYER}.mlp.{name}_proj": (8, 6) for name in ("gate", "up")
}
FUSED = {f"{LAYER}.self_attn.qkv_proj": (8, 16), f"{LAYER}.mlp.gate_up_proj": (8, 12)}


@pytest.mark.parametrize(
    "written", ["model.layers.3", "layers.3", "base_model.model.model.layers.3", "model.language_model.layers.3"]
)
def test_names_of_all_wrappers_are_those_of_the_model(written: str) -> None:
    assert CausalNames(SPLIT).canonical(f"{written}.self_attn.q_proj") == f"{LAYER}.self_attn.q_proj"


def test_fused_modules_of_the_model_itself_stay_whole() -> None:
    for path in FUSED:
        assert CausalNames(FUSED).canonical(path) == path


def test_fused_adapter_of_a_split_model_covers_each_row_once_in_order() -> None:
    names = CausalNames(SPLIT)
    attention = names.canonical(f"{LAYER}.self_attn.qkv_proj")
    gated = names.canonical(f"{LAYER}.mlp.gate_up_proj")
    assert not isinstance(attention, str)
    assert not isinstance(gated, str)
    assert [part.module.rpartition(".")[2] for part in (*attention, *gated)] == [
        "q_proj",
        "k_proj",
        "v_proj",
        "gate_proj",
        "up_proj",
    ]
    assert torch.cat([part.rows for part in attention]).tolist() == list(range(16))
    assert torch.cat([part.rows for part in gated]).tolist() == list(range(12))


@pytest.mark.parametrize("name", ["lm_head", "model.embed_tokens"])
def test_head_and_embedding_are_no_layers(name: str) -> None:
    assert CausalNames(SPLIT).canonical(name) == name
