"""Keys of LoRA tensors: prefixes of tools around the module name, and keys of other methods."""

from __future__ import annotations

from pathlib import Path

import pytest

from generation_service.adapters.checkpoint.keys import FactorKey, module_of, parse_key
from generation_service.adapters.checkpoint.reader import read_checkpoint
from infra.contract.errors import CheckpointError
from tests.support.checkpoints.peft_adapters import LAYERS, PREFIX, TinyAdapter, same

MODULE = "model.layers.0.q_proj"


@pytest.mark.parametrize(
    "key",
    [
        "base_model.model.{}",
        "base_model.model.base_model.model.{}",
        "{}",
        "module.base_model.model.{}",
        "module.{}",
        "_orig_mod.base_model.model.{}",
        "module._orig_mod.base_model.model.{}",
        "base_model.model._orig_mod.{}",
        "_fsdp_wrapped_module.base_model.model.{}",
        "_forward_module.base_model.model.{}",
    ],
)
def test_prefixes_of_tools_are_removed(tmp_path: Path, key: str) -> None:
    assert parse_key(f"{key.format(MODULE)}.lora_A.weight") == FactorKey(MODULE, "A", "default")
    adapter = TinyAdapter.random(LAYERS)
    plain = read_checkpoint(adapter.write(tmp_path), LAYERS, same)
    adapter.tensors = {key.format(name.removeprefix(PREFIX)): tensor for name, tensor in adapter.tensors.items()}
    wrapped = read_checkpoint(adapter.write(tmp_path), LAYERS, same)
    assert wrapped.modules.keys() == plain.modules.keys()
    assert all((wrapped.modules[path].b == pair.b).all() for path, pair in plain.modules.items())


def test_wrappers_within_name_are_removed() -> None:
    key = "base_model.model.model.layers.0._checkpoint_wrapped_module._fsdp_wrapped_module.q_proj.lora_B.task.weight"
    assert parse_key(key) == FactorKey(MODULE, "B", "task")
    assert module_of(key) == MODULE
    assert module_of("scale") == "scale"


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("lora_unet_down_blocks_0_attn.lora_down.weight", "kohya"),
        ("unet.down_blocks.0.attn.lora.up.weight", "diffusers"),
        ("model.layers.0.q_proj.lora_a", "MLX or torchtune"),
        ("base_model.model.model.layers.0.q_proj.hada_w1_a", "LoHa"),
        ("base_model.model.model.layers.0.q_proj.lokr_w1", "LoKr"),
        ("base_model.model.model.layers.0.q_proj.ia3_l", "IA3"),
        ("base_model.model.model.layers.0.q_proj.vera_lambda_b", "VeRA"),
        ("base_model.model.model.layers.0.q_proj.lora_E", "AdaLoRA"),
        ("prompt_embeddings", "prompt tuning"),
        ("base_model.model.score.modules_to_save.lora_A.weight", "modules_to_save"),
        ("base_model.model.model.layers.0.q_proj.lora_A.weight_scale", "not a lora_A or lora_B weight"),
    ],
)
def test_key_of_another_method_is_named(key: str, words: str) -> None:
    reason = parse_key(key)
    assert isinstance(reason, str)
    assert words in reason


@pytest.mark.parametrize(("layer", "words"), [("lm_head", "the output head"), ("model.embed_tokens", "the embedding")])
def test_lora_on_head_or_embedding_is_refused_with_remedy(tmp_path: Path, layer: str, words: str) -> None:
    adapter = TinyAdapter.random({**LAYERS, layer: (8, 16)})
    with pytest.raises(CheckpointError, match=f"{layer} .{words} takes no adapter: train with target_modules"):
        read_checkpoint(adapter.write(tmp_path), LAYERS, same)
