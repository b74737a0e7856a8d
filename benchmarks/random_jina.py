"""Writes jina-embeddings-v4 folders of any size with random weights, which are as fast as trained ones.

Import `harness` first.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel
from transformers.initialization import no_init_weights

_TASKS = ("retrieval", "text-matching", "code")
_COPIED = ("tokenizer.json", "preprocessor_config.json")
_RANK = 8


@dataclass(frozen=True)
class JinaShape:
    """Sizes of the language model. The vision tower is `vision_hidden` wide and two blocks deep."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vision_hidden: int = 128


SHAPES = {
    "small": JinaShape(hidden=256, layers=4, heads=4, kv_heads=2, intermediate=1024),
    "wide": JinaShape(hidden=2048, layers=2, heads=16, kv_heads=2, intermediate=4096),
    "published": JinaShape(hidden=2048, layers=36, heads=16, kv_heads=2, intermediate=11008, vision_hidden=1280),
}
"""`published` has the sizes of the published language model, `wide` its vectors of 2048 dimensions with few layers."""


def write_random_jina(folder: Path, shape: JinaShape, like: Path, seed: int = 0) -> Path:
    """Write a folder in the layout of the hub, with the tokenizer and image processor of `like`. Returns it."""
    (folder / "adapters").mkdir(parents=True)
    for name in _COPIED:
        shutil.copy(like / name, folder / name)
    config = _config(json.loads((like / "config.json").read_text(encoding="utf-8")), shape)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with no_init_weights():
        model = Qwen2_5_VLModel(Qwen2_5_VLConfig.from_dict(dict(config)))
    draw = torch.Generator().manual_seed(seed)
    weights = {name: _random(tensor, draw) for name, tensor in model.state_dict().items()}
    save_file({_hub_name(name): tensor for name, tensor in weights.items()}, folder / "model.safetensors")
    adapter = {}
    for name, module in model.language_model.named_modules():
        if isinstance(module, torch.nn.Linear):
            for task in _TASKS:
                key = f"base_model.model.model.language_model.{name}.lora"
                adapter[f"{key}_A.{task}.weight"] = _random(torch.empty(_RANK, module.in_features), draw)
                adapter[f"{key}_B.{task}.weight"] = _random(torch.empty(module.out_features, _RANK), draw)
    save_file(adapter, folder / "adapters" / "adapter_model.safetensors")
    lora = {"peft_type": "LORA", "r": _RANK, "lora_alpha": _RANK, "bias": "none"}
    (folder / "adapters" / "adapter_config.json").write_text(json.dumps(lora), encoding="utf-8")
    return folder


def _config(config: dict[str, Any], shape: JinaShape) -> dict[str, Any]:
    sixteenth = shape.hidden // shape.heads // 16
    sections = [2 * sixteenth, 3 * sixteenth, 3 * sixteenth]
    vision = config["vision_config"] | {
        "hidden_size": shape.vision_hidden,
        "intermediate_size": 2 * shape.vision_hidden,
        "num_heads": max(2, shape.vision_hidden // 64),
        "out_hidden_size": shape.hidden,
    }
    return config | {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.intermediate,
        "max_window_layers": shape.layers,
        "rope_scaling": {"type": "mrope", "mrope_section": sections},
        "vision_config": vision,
        "matryoshka_dims": [shape.hidden],
    }


def _hub_name(name: str) -> str:
    return name.replace("language_model.", "model.", 1) if name.startswith("language_model.") else name


def _random(tensor: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    if tensor.ndim == 1:  # norms and biases
        return torch.ones(len(tensor), dtype=torch.bfloat16)
    scale = float(tensor[0].numel()) ** -0.5
    return torch.randn(tensor.shape, generator=draw).mul(scale).to(torch.bfloat16)
