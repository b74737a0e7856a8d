"""Random adapters in memory and as PEFT folders. Import `harness` first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from generation_service.lora.weights import AdapterWeights, LoraPair, Shapes

DELTA_SCALE = 0.1
"""Size of a delta relative to a normalised input: large enough to change answers, too small to overflow."""


def random_adapter(
    targets: Shapes, rank: int, seed: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> AdapterWeights:
    """Return an adapter of `rank` on every module of `targets`, with its scaling folded into b."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(rows: int, columns: int, deviation: float) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator, device=device).mul_(deviation).to(dtype)

    return AdapterWeights.of(
        {
            path: LoraPair(normal(rank, inputs, inputs**-0.5), normal(outputs, rank, DELTA_SCALE * rank**-0.5))
            for path, (inputs, outputs) in targets.items()
        }
    )


def random_adapters(
    targets: Shapes,
    ranks: Sequence[int],
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> list[AdapterWeights]:
    """Return one adapter per entry of `ranks`, all different."""
    return [
        random_adapter(targets, rank, 1000 * seed + number, dtype=dtype, device=device)
        for number, rank in enumerate(ranks)
    ]


def write_peft_folder(folder: Path, weights: AdapterWeights, base_model: str = "random") -> Path:
    """Write `weights` in PEFT's format and return the folder. The scaling is 1, since it is folded into b.

    Raises ValueError unless all modules have the adapter's rank.
    """
    if any(pair.rank != weights.rank for pair in weights.modules.values()):
        raise ValueError("write_peft_folder needs an adapter with the same rank in all modules")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for path, pair in weights.modules.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = pair.a.contiguous().cpu()
        tensors[f"base_model.model.{path}.lora_B.weight"] = pair.b.contiguous().cpu()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base_model,
        "r": weights.rank,
        "lora_alpha": weights.rank,
        "target_modules": sorted({path.rpartition(".")[2] for path in weights.modules}),
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
