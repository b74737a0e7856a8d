"""Reading PEFT folders: how tensors bind, and what is refused by name."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from generation_service.adapters.checkpoint.binding import FusedSlice
from generation_service.adapters.checkpoint.reader import read_checkpoint
from infra.contract.errors import CapacityError, CheckpointError
from tests.support.checkpoints.peft_adapters import LAYERS, PREFIX, TinyAdapter, same


def test_every_tensor_is_bound_with_its_scaling_folded_into_b(tmp_path: Path) -> None:
    adapter = TinyAdapter.random(LAYERS, rank=4, alpha=6)
    read = read_checkpoint(adapter.write(tmp_path), LAYERS, same)
    assert read.rank == 4
    assert read.modules.keys() == LAYERS.keys()
    for path, pair in read.modules.items():
        torch.testing.assert_close(pair.a, adapter.a(path), rtol=0, atol=0)
        torch.testing.assert_close(pair.b, adapter.b(path) * 1.5, rtol=0, atol=0)


def test_rslora_scales_by_square_root_of_rank(tmp_path: Path) -> None:
    adapter = TinyAdapter.random(LAYERS, rank=4, alpha=6, use_rslora=True)
    read = read_checkpoint(adapter.write(tmp_path), LAYERS, same)
    for path, pair in read.modules.items():
        torch.testing.assert_close(pair.b, adapter.b(path) * 3)


def test_patterns_override_rank_and_alpha_of_modules_they_match(tmp_path: Path) -> None:
    adapter = TinyAdapter.random(LAYERS, rank=4, alpha=8)
    adapter.config["rank_pattern"] = {"k_proj": 2, "^model.layers.1.q_proj": 3}
    adapter.config["alpha_pattern"] = {"layers.1.k_proj": 10}
    for path, rank in {"model.layers.0.k_proj": 2, "model.layers.1.k_proj": 2, "model.layers.1.q_proj": 3}.items():
        adapter.tensors[f"{PREFIX}{path}.lora_A.weight"] = adapter.a(path)[:rank]
        adapter.tensors[f"{PREFIX}{path}.lora_B.weight"] = adapter.b(path)[:, :rank]
    read = read_checkpoint(adapter.write(tmp_path), LAYERS, same)
    scalings = {
        "model.layers.0.q_proj": 8 / 4,
        "model.layers.0.k_proj": 8 / 2,
        "model.layers.1.q_proj": 8 / 3,
        "model.layers.1.k_proj": 10 / 2,
    }
    for path, scaling in scalings.items():
        torch.testing.assert_close(read.modules[path].b, adapter.b(path) * scaling)
    assert read.rank == 4


def test_default_adapter_name_in_keys_is_accepted(tmp_path: Path) -> None:
    adapter = TinyAdapter.random(LAYERS)
    plain = read_checkpoint(adapter.write(tmp_path / "plain"), LAYERS, same)
    adapter.tensors = {key.replace(".weight", ".default.weight"): value for key, value in adapter.tensors.items()}
    named = read_checkpoint(adapter.write(tmp_path / "named"), LAYERS, same)
    for path in LAYERS:
        assert torch.equal(plain.modules[path].b, named.modules[path].b)


def test_fused_module_is_split_into_slices_with_shared_a(tmp_path: Path) -> None:
    adapter = TinyAdapter.random({"attention.wqkv": (8, 6)})
    targets = {"q": (8, 4), "k": (8, 2)}
    parts = [FusedSlice("q", torch.tensor([0, 1, 3, 4])), FusedSlice("k", torch.tensor([2, 5]))]
    read = read_checkpoint(adapter.write(tmp_path), targets, lambda _: parts)
    b = adapter.b("attention.wqkv") * 2
    torch.testing.assert_close(read.modules["q"].b, b[[0, 1, 3, 4]])
    torch.testing.assert_close(read.modules["k"].b, b[[2, 5]])
    assert torch.equal(read.modules["q"].a, read.modules["k"].a)


def test_fused_module_of_another_size_does_not_bind(tmp_path: Path) -> None:
    adapter = TinyAdapter.random({"attention.wqkv": (8, 7)})
    parts = [FusedSlice("q", torch.tensor([0, 1, 3, 4])), FusedSlice("k", torch.tensor([2, 5]))]
    with pytest.raises(CheckpointError, match=r"lora_B is \[7, 4\], its module has 6 outputs"):
        read_checkpoint(adapter.write(tmp_path), {"q": (8, 4), "k": (8, 2)}, lambda _: parts)


def test_unbound_tensors_are_counted_and_listed_with_nearest_modules(tmp_path: Path) -> None:
    adapter = TinyAdapter.random({**LAYERS, "model.layers.7.q_proj": (8, 8)})
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(adapter.write(tmp_path), LAYERS, same)
    assert "2 of 10 tensors do not bind" in caught.value.message
    assert "model.layers.7.q_proj.lora_A.weight" in caught.value.message
    assert "nearest are model.layers.1.q_proj" in caught.value.message
    assert caught.value.metadata["unbound"] == "2"


def test_file_without_lora_tensors_is_refused(tmp_path: Path) -> None:
    adapter = TinyAdapter.random({f"other.{number}": (8, 8) for number in range(20)})
    with pytest.raises(CheckpointError, match=r"40 of 40 tensors do not bind[\s\S]*and 32 more"):
        read_checkpoint(adapter.write(tmp_path), LAYERS, same)


def test_two_modules_renamed_to_one_are_refused(tmp_path: Path) -> None:
    adapter = TinyAdapter.random({"model.layers.0.q_proj": (8, 8), "layers.0.q_proj": (8, 8)})
    with pytest.raises(CheckpointError, match="bound by another tensor already, of the module layers"):
        read_checkpoint(adapter.write(tmp_path), LAYERS, lambda _: "model.layers.0.q_proj")


def test_duplicate_tensor_is_refused(tmp_path: Path) -> None:
    adapter = TinyAdapter.random(LAYERS)
    key = f"{PREFIX}model.layers.0.q_proj.lora_A.weight"
    adapter.tensors[key.removeprefix(PREFIX)] = adapter.tensors[key].clone()
    with pytest.raises(CheckpointError, match="same factor of the same module"):
        read_checkpoint(adapter.write(tmp_path), LAYERS, same)


def test_factor_without_its_counterpart_is_refused(tmp_path: Path) -> None:
    adapter = TinyAdapter.random(LAYERS)
    del adapter.tensors[f"{PREFIX}model.layers.0.q_proj.lora_B.weight"]
    with pytest.raises(CheckpointError, match="its counterpart lora_B is missing"):
        read_checkpoint(adapter.write(tmp_path), LAYERS, same)


def test_several_adapters_in_one_file_are_refused(tmp_path: Path) -> None:
    adapter = TinyAdapter.random({})
    for task, path in zip(("retrieval", "code"), LAYERS, strict=False):
        adapter.tensors[f"{PREFIX}{path}.lora_A.{task}.weight"] = torch.zeros(4, 8)
        adapter.tensors[f"{PREFIX}{path}.lora_B.{task}.weight"] = torch.zeros(LAYERS[path][1], 4)
    with pytest.raises(CheckpointError, match="several adapters, code, retrieval"):
        read_checkpoint(adapter.write(tmp_path), LAYERS, same)


def test_rank_that_differs_from_config_is_refused(tmp_path: Path) -> None:
    adapter = TinyAdapter.random(LAYERS, rank=4)
    adapter.config["r"] = 8
    with pytest.raises(CheckpointError, match=r"are not \[8, 8\] and \[8, 8\], rank 8 of the config"):
        read_checkpoint(adapter.write(tmp_path), LAYERS, same)


def test_adapter_of_larger_model_is_refused(tmp_path: Path) -> None:
    adapter = TinyAdapter.random({"model.layers.0.q_proj": (16, 16)})
    with pytest.raises(CheckpointError, match=r"\[4, 16\] and lora_B \[16, 4\] are not"):
        read_checkpoint(adapter.write(tmp_path), LAYERS, same)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
def test_non_finite_values_are_refused(tmp_path: Path, value: float, factor: str) -> None:
    adapter = TinyAdapter.random(LAYERS)
    adapter.tensors[f"{PREFIX}model.layers.1.k_proj.{factor}.weight"][0, 0] = value
    with pytest.raises(CheckpointError, match=r"model.layers.1.k_proj.*NaN or infinite"):
        read_checkpoint(adapter.write(tmp_path), LAYERS, same)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("model.layers.0.q_proj.lora_magnitude_vector.weight", "DoRA is not applied"),
        ("model.embed_tokens.lora_embedding_A", "embedding LoRA is not applied"),
        ("model.layers.0.q_proj.lora_B.bias", "trained biases are not applied"),
        ("lm_head.modules_to_save.weight", "modules_to_save are not applied"),
        ("model.embed_tokens.weight", "a trained embedding"),
        ("lm_head.weight", "a trained output head"),
        ("model.layers.0.extra.weight", "it is not a lora_A or lora_B weight"),
    ],
)
def test_tensor_that_is_not_lora_factor_is_refused_by_name(tmp_path: Path, key: str, expected: str) -> None:
    adapter = TinyAdapter.random(LAYERS)
    adapter.tensors[f"{PREFIX}{key}"] = torch.ones(4)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(adapter.write(tmp_path), LAYERS, same)
    assert f"{PREFIX}{key}: {expected}" in caught.value.message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tensors_of_any_floating_point_dtype_bind(tmp_path: Path, dtype: torch.dtype) -> None:
    adapter = TinyAdapter.random(LAYERS)
    adapter.tensors = {key: tensor.to(dtype) for key, tensor in adapter.tensors.items()}
    read = read_checkpoint(adapter.write(tmp_path), LAYERS, same)
    for path, pair in read.modules.items():
        torch.testing.assert_close(pair.a, adapter.a(path).float(), rtol=0, atol=0)


def test_value_beyond_dtype_of_bank_is_refused(tmp_path: Path) -> None:
    adapter = TinyAdapter.random(LAYERS)
    adapter.tensors[f"{PREFIX}model.layers.0.q_proj.lora_A.weight"][0, 0] = 1e5
    with pytest.raises(CheckpointError, match=r"NaN or infinite \(in torch.float16"):
        read_checkpoint(adapter.write(tmp_path), LAYERS, same, dtype=torch.float16)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool])
def test_integer_tensors_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    adapter = TinyAdapter.random(LAYERS)
    adapter.tensors = {key: tensor.to(dtype) for key, tensor in adapter.tensors.items()}
    with pytest.raises(CheckpointError, match="not floating point types"):
        read_checkpoint(adapter.write(tmp_path), LAYERS, same)


def test_overflowing_scaling_is_refused(tmp_path: Path) -> None:
    adapter = TinyAdapter.random(LAYERS, alpha=1e9)
    adapter.tensors[f"{PREFIX}model.layers.0.q_proj.lora_B.weight"].fill_(1e38)
    with pytest.raises(CheckpointError, match=r"q_proj.*NaN or infinite \(in torch.float32, scaled by 2.5e\+08\)"):
        read_checkpoint(adapter.write(tmp_path), LAYERS, same)


def test_rank_beyond_bank_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    TinyAdapter.random(LAYERS, rank=4).write(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(CapacityError, match="rank 4, and the adapter bank takes 3") as caught:
        read_checkpoint(tmp_path, LAYERS, same, max_rank=3)
    assert caught.value.metadata == {"rank": "4", "limit": "3"}


def test_half_precision_tensors_are_scaled_in_single_precision(tmp_path: Path) -> None:
    adapter = TinyAdapter.random(LAYERS, rank=3, alpha=1)
    adapter.tensors = {key: tensor.to(torch.bfloat16) for key, tensor in adapter.tensors.items()}
    read = read_checkpoint(adapter.write(tmp_path), LAYERS, same)
    for path, pair in read.modules.items():
        assert pair.b.dtype == torch.float32
        torch.testing.assert_close(pair.b, adapter.b(path).float() / 3)


@pytest.mark.parametrize(
    "selection",
    [
        {"target_modules": ["q_proj"]},
        {"target_modules": r".*\.q_proj"},
        {"target_modules": ["q_proj", "k_proj"], "layers_to_transform": [0]},
        {"target_modules": ["q_proj", "k_proj"], "layers_to_transform": 1, "layers_pattern": "layers"},
        {"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["k_proj"]},
        {"target_modules": "all-linear", "exclude_modules": r".*\.1\..*"},
        {"target_modules": r"model\..*", "exclude_modules": ["k_proj"]},
        {"target_modules": None, "exclude_modules": ["layers.1.k_proj"]},
    ],
    ids=str,
)
def test_tensor_on_module_that_config_leaves_out_is_refused(tmp_path: Path, selection: dict[str, Any]) -> None:
    adapter = TinyAdapter.random(LAYERS, **selection)
    with pytest.raises(CheckpointError, match=r"leave its module out, so PEFT would not apply it") as caught:
        read_checkpoint(adapter.write(tmp_path), LAYERS, same)
    kept = {key: tensor for key, tensor in adapter.tensors.items() if f"{key}: the config" not in caught.value.message}
    assert 0 < len(kept) < len(adapter.tensors)
    adapter.tensors = kept
    assert read_checkpoint(adapter.write(tmp_path), LAYERS, same).modules
