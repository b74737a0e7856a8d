"""An adapter on Phi-3's fused layers, served on the same model with Llama's split layers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from generation_service.app import generation_stack
from infra.contract.composition import Mixture, WeightedAdapter
from infra.contract.generation import Decoding
from infra.contract.prompt import Prompt
from tests.support.checkpoints.causal import write_causal
from tests.support.harness.generation_stack import settings_for

FIELDS: dict[str, Any] = {"rms_norm_eps": 1e-5, "sliding_window": None, "resid_pdrop": 0.0}
SPLIT = {
    "self_attn.qkv_proj": {"self_attn.q_proj": 64, "self_attn.k_proj": 32, "self_attn.v_proj": 32},
    "mlp.gate_up_proj": {"mlp.gate_proj": 96, "mlp.up_proj": 96},
}


def split(fused: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in fused.items():
        module = next((module for module in SPLIT if module in name), None)
        if module is None:
            yield name, tensor
            continue
        for part, rows in zip(SPLIT[module], tensor.split(list(SPLIT[module].values())), strict=True):
            yield name.replace(module, part), rows.clone()


def answers(folder: Path, adapters: Path) -> list[str]:
    with generation_stack(settings_for(folder, [adapters], model_name="fused")) as stack:

        async def together() -> list[str]:
            mixture, decoding = Mixture((WeightedAdapter("mine", 1.0),)), Decoding(max_new_tokens=12)
            asked = [stack.service.generate(Prompt.of(text), mixture, decoding) for text in ("Why?", "Go back now.")]
            return [answer.text for answer in await asyncio.gather(*asked)]

        return asyncio.run(together())


def test_fused_adapter_changes_split_layers_as_it_changes_fused_ones(tmp_path: Path) -> None:
    fused = write_causal(tmp_path / "fused", "phi3", FIELDS)
    halves = write_causal(tmp_path / "split", "llama", {"rms_norm_eps": 1e-5})
    model = LlamaForCausalLM.from_pretrained(halves)
    model.load_state_dict(dict(split(load_file(fused / "model.safetensors"))))
    model.save_pretrained(halves)
    torch.manual_seed(5)
    config = peft.LoraConfig(r=4, lora_alpha=16, target_modules=["qkv_proj", "gate_up_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(fused), config)
    adapted.peft_config["default"].base_model_name_or_path = "fused"
    adapted.save_pretrained(tmp_path / "adapters" / "mine")
    expected = answers(fused, tmp_path / "adapters")
    assert answers(halves, tmp_path / "adapters") == expected
    assert all(expected)
