"""Float8 checkpoints written by hand from the published layouts, and the methods that are refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from generation_service.commands.inspection import inspect_folder
from generation_service.models.base import BaseModel, LoadOptions
from generation_service.models.registry import load_base_model
from infra.contract.errors import CheckpointError
from infra.contract.prompt import Prompt
from tests.parity.prompt_logits import prompt_logits
from tests.support.checkpoints.causal import write_causal
from tests.support.checkpoints.internvl2 import TinyInternVL, write_internvl2
from tests.support.checkpoints.qwen3_vl import write_qwen3_vl

WEIGHTS = "model.safetensors"
BLOCK = (32, 40)
"""Neither divides the matrices of the tiny models, so that blocks at the edges are smaller."""
DEEPSEEK = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": list(BLOCK)}
PLAIN = {"quant_method": "fp8", "activation_scheme": "static"}
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {
        "group_0": {"weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}}
    },
}
Quantise = Callable[[Tensor], tuple[Tensor, Tensor]]


def load(folder: Path) -> BaseModel:
    return load_base_model(folder, LoadOptions(torch.device("cpu"), torch.float32))


def by_block(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the stored values and the scale of each block, block by block."""
    rows, columns = (range(0, size, step) for size, step in zip(weight.shape, BLOCK, strict=True))
    stored = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    scales = torch.empty(len(rows), len(columns))
    for i, top in enumerate(rows):
        for j, left in enumerate(columns):
            place = (slice(top, top + BLOCK[0]), slice(left, left + BLOCK[1]))
            scales[i, j] = weight[place].abs().max() / 448
            stored[place] = (weight[place] / scales[i, j]).to(torch.float8_e4m3fn)
    return stored, scales


def by_row(weight: Tensor) -> tuple[Tensor, Tensor]:
    scales = weight.abs().amax(1, keepdim=True) / 448
    return (weight / scales).to(torch.float8_e4m3fn), scales


def by_tensor(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = weight.abs().max() / 448
    return (weight / scale).to(torch.float8_e4m3fn), scale


def expanded(scale: Tensor, shape: torch.Size) -> Tensor:
    """Return the scale of each value, by a loop over the values' places."""
    if scale.dim() == 0 or (scale.shape[1] == 1 and scale.shape[0] == shape[0]):
        return scale.expand(shape) if scale.dim() else scale
    return torch.stack(
        [
            torch.stack([scale[row // BLOCK[0], column // BLOCK[1]] for column in range(shape[1])])
            for row in range(shape[0])
        ]
    )


def quantise(folder: Path, settings: dict[str, Any], to: Quantise, ending: str) -> dict[str, Tensor]:
    """Store the layers' matrices of `folder` in float8; return the weights that they stand for."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    weights = load_file(folder / WEIGHTS)
    meant = dict(weights)
    for name, weight in meant.items():
        if ".layers." in name and name.endswith(("proj.weight", "wqkv.weight", "wo.weight")):
            values, scale = to(weight)
            weights |= {name: values, name + ending: scale}
            meant[name] = values.float() * expanded(scale, weight.shape)
            if settings is PLAIN:
                weights[name.removesuffix("weight") + "input_scale"] = torch.tensor(0.5)
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    return meant


@pytest.mark.parametrize(
    ("settings", "to", "ending"),
    [
        (DEEPSEEK, by_block, "_scale_inv"),
        (PLAIN, by_tensor, "_scale"),
        (PLAIN, by_row, "_scale"),
        (COMPRESSED, by_row, "_scale"),
    ],
    ids=["DeepSeek and Qwen3-FP8", "by tensor", "by row", "compressed-tensors"],
)
def test_weights_are_values_times_scales(tmp_path: Path, settings: dict[str, Any], to: Quantise, ending: str) -> None:
    folder = write_causal(tmp_path / "base", "qwen3", {"head_dim": 24})
    meant = quantise(folder, settings, to, ending)
    model = load(folder)
    loaded = model.module.state_dict()
    assert loaded.keys() == meant.keys()
    for name, weight in meant.items():
        torch.testing.assert_close(loaded[name], weight, rtol=0, atol=0)
    report = inspect_folder(folder)
    assert report.supported, report.problems
    assert "float8" in str(report.quantisation)  # type: ignore[union-attr]
    assert prompt_logits(model, model.encode(Prompt.of("Why?"), [])).isfinite().all()


@pytest.mark.parametrize("write", [write_qwen3_vl, lambda path: write_internvl2(path, TinyInternVL())])
def test_vision_families_read_float8(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    folder = write(tmp_path / "base")
    meant = quantise(folder, DEEPSEEK, by_block, "_scale_inv")
    quantised = load(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "quantization_config"}))
    save_file({name: tensor.contiguous() for name, tensor in meant.items()}, folder / WEIGHTS, {"format": "pt"})
    expected = load(folder).module.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in quantised.module.state_dict().items())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda weights, name: weights.pop(f"{name}_scale_inv"), r"has no .*down_proj\.weight_scale or .*_scale_inv"),
        (
            lambda weights, name: weights.update({f"{name}_scale_inv": torch.ones(3, 7)}),
            r"the scale of .*down_proj\.weight is \[3, 7\], which does not fit \[64, 96\] in blocks of 32 x 40",
        ),
        (lambda weights, name: weights.update({"model.extra_scale": torch.ones(1)}), r"without a place.*extra_scale"),
    ],
    ids=["no scale", "another block size", "surplus scale"],
)
def test_scales_that_do_not_fit_are_named(
    tmp_path: Path, change: Callable[[dict[str, Tensor], str], object], match: str
) -> None:
    folder = write_causal(tmp_path / "base", "qwen3", {"head_dim": 24})
    quantise(folder, DEEPSEEK, by_block, "_scale_inv")
    weights = load_file(folder / WEIGHTS)
    change(weights, "model.layers.1.mlp.down_proj.weight")
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(CheckpointError, match=match):
        load(folder)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"quant_method": "awq", "bits": 4}, r"AWQ \(4 bits\)"),
        ({"quant_method": "gptq", "bits": 8}, r"GPTQ \(8 bits\)"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, r"bitsandbytes \(4 bits\)"),
        ({"quant_method": "torchao", "quant_type": "int4_weight_only"}, r"torchao \(int4_weight_only\)"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, r"compressed-tensors \(pack-quantized\)"),
        ({"quant_method": "new_method"}, "new_method"),
    ],
)
def test_other_methods_are_refused_by_name(tmp_path: Path, settings: dict[str, Any], named: str) -> None:
    folder = write_causal(tmp_path / "base", "qwen3")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    with pytest.raises(CheckpointError, match=rf"is quantised with {named}, which is not served; take the model that"):
        load(folder)
