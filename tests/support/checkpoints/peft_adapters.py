"""Tiny PEFT adapter folders, valid or broken in one way."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

_LINEARS = {"q_proj": (8, 8), "k_proj": (8, 4)}
PREFIX = "base_model.model."
LAYERS = {f"model.layers.{layer}.{name}": size for layer in (0, 1) for name, size in _LINEARS.items()}
"""The adaptable layers of a tiny base model without a family: path -> (in, out)."""


def same(name: str) -> str:
    """Return the name unchanged: module names are those of the checkpoint."""
    return name


@dataclass
class TinyAdapter:
    """A folder's contents, which tests change before they `write` it. `tensors` have PEFT's keys."""

    config: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def random(
        cls, shapes: Mapping[str, tuple[int, int]], rank: int = 4, alpha: float = 8, seed: int = 0, **config: Any
    ) -> TinyAdapter:
        """Return a LoRA with normally distributed values on the modules of `shapes`, path -> (in, out)."""
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for path, (inputs, outputs) in shapes.items():
            tensors[f"{PREFIX}{path}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator) / inputs**0.5
            tensors[f"{PREFIX}{path}.lora_B.weight"] = torch.randn(outputs, rank, generator=generator)
        return cls(
            {
                "peft_type": "LORA",
                "r": rank,
                "lora_alpha": alpha,
                "bias": "none",
                "target_modules": "^(model)(?!.*(lm_head|output|emb|wte|shared)).*",
                "base_model_name_or_path": "tiny",
                **config,
            },
            tensors,
        )

    def a(self, path: str) -> Tensor:
        """Return A [r, in] of the module at `path`."""
        return self.tensors[f"{PREFIX}{path}.lora_A.weight"]

    def b(self, path: str) -> Tensor:
        """Return B [out, r] of the module at `path`, without its scaling."""
        return self.tensors[f"{PREFIX}{path}.lora_B.weight"]

    def write(self, folder: Path) -> Path:
        """Write both files with mode 0600, like PEFT, and return the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "adapter_config.json"
        config.write_text(json.dumps(self.config))
        weights = folder / "adapter_model.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in self.tensors.items()}, weights)
        config.chmod(0o600)
        weights.chmod(0o600)
        return folder
