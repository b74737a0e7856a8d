"""The bank on a tiny Qwen2-VL against PEFT, which trained and saved the adapters, on the whole model's logits."""

from __future__ import annotations

import copy
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from generation_service.adapters.checkpoint.reader import read_checkpoint
from generation_service.adapters.checkpoint.writer import write_checkpoint
from generation_service.lora.bank import AdapterBank
from generation_service.lora.fusion.fuse import FusionMember, fuse
from generation_service.lora.ranks import RankRange
from generation_service.lora.weights import AdapterWeights
from infra.contract.composition import FusionMethod
from infra.contract.errors import CheckpointError

LANGUAGE = r"model\.language_model\.layers\..*_proj"
EVERYWHERE = r"model\.(language_model\.layers\..*_proj|visual\.(blocks\..*\.(qkv|proj|fc1|fc2)|merger\.mlp\.[02]))"
IMAGE, VISION_START = 5, 6
GRID = (1, 4, 4)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 6},
    "rslora": {"r": 9, "lora_alpha": 6, "use_rslora": True},
    "language model and vision tower": {"r": 4, "lora_alpha": 8, "target_modules": EVERYWHERE},
    "attention only": {"r": 2, "lora_alpha": 2, "target_modules": ["q_proj", "v_proj"]},
    "rank pattern": {"r": 4, "lora_alpha": 8, "rank_pattern": {"q_proj": 7, r"layers\.1\.mlp\.down_proj": 2}},
    "alpha pattern": {"r": 4, "lora_alpha": 8, "alpha_pattern": {"k_proj": 3, r".*layers\.0\.self_attn\.o_proj": 31}},
    "patterns with expressions, rslora": {
        "r": 4,
        "lora_alpha": 8,
        "use_rslora": True,
        "rank_pattern": {r".*layers\.(0|7)\.self_attn\.(q|k)_proj": 6, r"[a-z]+_proj": 3},
        "alpha_pattern": {r"\w+\.layers\.\d+\.mlp\.(gate|up)_proj": 5, "mlp.gate_proj": 1},
    },
    "one layer": {"r": 4, "lora_alpha": 64, "target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]},
    "one layer of a list": {
        "r": 4,
        "lora_alpha": 64,
        "target_modules": ["proj", "q_proj"],
        "layers_to_transform": 0,
        "layers_pattern": ["blocks", "layers"],
    },
    "excluded names": {"r": 4, "lora_alpha": 8, "exclude_modules": ["k_proj", "layers.1.mlp.up_proj"]},
    "excluded expression": {"r": 4, "lora_alpha": 8, "exclude_modules": r".*layers\.0\..*"},
    "all linear layers": {"r": 3, "lora_alpha": 8, "target_modules": "all-linear"},
    "orthogonal initialisation": {"r": 4, "lora_alpha": 8, "init_lora_weights": "orthogonal"},
    "both patterns, rslora": {
        "r": 4,
        "lora_alpha": 8,
        "use_rslora": True,
        "rank_pattern": {"layers.0.mlp.up_proj": 5, "up_proj": 3},
        "alpha_pattern": {"mlp.up_proj": 1.5},
    },
}


@cache
def base_model() -> Any:
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": 40,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
        },
        vision_config={"depth": 2, "embed_dim": 16, "num_heads": 2, "hidden_size": 32, "mlp_ratio": 2},
        image_token_id=IMAGE,
        vision_start_token_id=VISION_START,
        vision_end_token_id=7,
    )
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.2)
    return model


def prompts(rows: int) -> dict[str, Tensor]:
    """Return prompts of one image and some text each, different in pixels and text."""
    generator = torch.Generator().manual_seed(rows)
    merged = GRID[1] * GRID[2] // 4
    image = torch.tensor([VISION_START, *[IMAGE] * merged, 7]).repeat(rows, 1)
    text = torch.randint(8, 40, (rows, 6), generator=generator)
    ids = torch.cat([image, text], dim=1)
    return {
        "input_ids": ids,
        "mm_token_type_ids": (ids == IMAGE).int(),
        "pixel_values": torch.randn(rows * GRID[1] * GRID[2], 1176, generator=generator),
        "image_grid_thw": torch.tensor([GRID] * rows),
    }


def save_adapter(folder: Path, seed: int, **options: Any) -> Path:
    """Create and save a random adapter of the base model with PEFT."""
    config = LoraConfig(**{"target_modules": LANGUAGE, **options})
    model = get_peft_model(copy.deepcopy(base_model()), config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    model.save_pretrained(folder)
    return folder


def canonical(name: str) -> str:
    """Return the current module path for the current or an older name of a Qwen2-VL module."""
    if name.startswith("visual."):
        return f"model.{name}"
    return re.sub(r"^model\.layers\.", "model.language_model.layers.", name)


class ModelWithBank:
    """The base model with a bank installed."""

    def __init__(self) -> None:
        self.model = copy.deepcopy(base_model())
        self.targets = {
            name: (module.in_features, module.out_features)
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear) and name != "lm_head"
        }
        self.bank = AdapterBank(self.targets, 64, torch.float32, "cpu", by_image=("model.visual",))
        self.bank.install(self.model)

    def read(self, folder: Path) -> AdapterWeights:
        return read_checkpoint(folder, self.targets, canonical)

    def hold(self, weights: AdapterWeights) -> RankRange:
        owned = self.bank.acquire(weights.rank)
        self.bank.write(owned, weights)
        return owned

    def logits(self, rows: Sequence[Mapping[RankRange, float]], inputs: Mapping[str, Tensor]) -> Tensor:
        patches = [row for row in range(len(rows)) for _ in range(GRID[1] * GRID[2])]
        with torch.inference_mode(), self.bank.routing.step(rows, {"model.visual": [patches, patches[::4]]}):
            logits: Tensor = self.model(**inputs).logits
            return logits


def peft_logits(folder: Path, inputs: Mapping[str, Tensor]) -> Tensor:
    model = PeftModel.from_pretrained(copy.deepcopy(base_model()), folder).eval()
    with torch.inference_mode():
        logits: Tensor = model(**inputs).logits
        return logits


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_single_adapter_matches_peft_logits(tmp_path: Path, options: dict[str, Any]) -> None:
    folder = save_adapter(tmp_path, 1, **options)
    banked = ModelWithBank()
    owned = banked.hold(banked.read(folder))
    inputs = prompts(2)
    expected = peft_logits(folder, inputs)
    actual = banked.logits([{owned: 1.0}] * 2, inputs)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert (actual - banked.logits([{}] * 2, inputs)).abs().max() > 0.1


def test_keys_of_older_library_versions_give_same_logits(tmp_path: Path) -> None:
    folder = save_adapter(tmp_path, 1, r=4, target_modules=EVERYWHERE)
    inputs = prompts(1)
    expected = peft_logits(folder, inputs)
    file = folder / "adapter_model.safetensors"
    newer = load_file(file)
    older = {
        key.replace("model.language_model.layers.", "model.layers.").replace("model.visual.", "visual."): tensor
        for key, tensor in newer.items()
    }
    assert older.keys().isdisjoint(newer)
    save_file(older, file)
    banked = ModelWithBank()
    owned = banked.hold(banked.read(folder))
    torch.testing.assert_close(banked.logits([{owned: 1.0}], inputs), expected, rtol=1e-4, atol=1e-4)


def test_mixture_matches_peft_cat_logits(tmp_path: Path) -> None:
    options: list[dict[str, Any]] = [
        {"r": 4, "lora_alpha": 6},
        {"r": 7, "lora_alpha": 3, "target_modules": EVERYWHERE},
        {"r": 2, "lora_alpha": 8, "target_modules": EVERYWHERE},
    ]
    weights = [0.5, 0.3, 0.2]
    folders = [save_adapter(tmp_path / str(seed), seed, **chosen) for seed, chosen in enumerate(options)]
    merged = PeftModel.from_pretrained(copy.deepcopy(base_model()), folders[0], adapter_name="0").eval()
    for name in ("1", "2"):
        merged.load_adapter(folders[int(name)], name)
    merged.add_weighted_adapter(["0", "1", "2"], weights, "cat", combination_type="cat")
    merged.set_adapter("cat")
    inputs = prompts(1)
    with torch.inference_mode():
        expected = merged(**inputs).logits

    banked = ModelWithBank()
    read = [banked.read(folder) for folder in folders]
    mixture = {banked.hold(adapter): weight for adapter, weight in zip(read, weights, strict=True)}
    members = [FusionMember(adapter, weight) for adapter, weight in zip(read, weights, strict=True)]
    fused = banked.hold(fuse(members, FusionMethod.CONCAT))
    torch.testing.assert_close(banked.logits([mixture], inputs), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(banked.logits([{fused: 1.0}], inputs), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", [FusionMethod.CONCAT, FusionMethod.TIES])
def test_fused_adapter_written_as_peft_folder_is_loaded_by_peft(tmp_path: Path, method: FusionMethod) -> None:
    folders = [
        save_adapter(tmp_path / "0", 0, r=4, lora_alpha=6, use_rslora=True),
        save_adapter(tmp_path / "1", 1, r=3, lora_alpha=2, target_modules=EVERYWHERE, rank_pattern={"q_proj": 5}),
    ]
    banked, inputs = ModelWithBank(), prompts(1)
    members = [FusionMember(banked.read(folder), weight) for folder, weight in zip(folders, (0.7, 0.6), strict=True)]
    fused = fuse(members, method)
    assert len({pair.rank for pair in fused.modules.values()}) > 1 or method is FusionMethod.TIES
    write_checkpoint(tmp_path / "fused", fused, "tiny")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT warns of keys that are missing or not expected.
        expected = peft_logits(tmp_path / "fused", inputs)
    owned = banked.hold(fused)
    torch.testing.assert_close(banked.logits([{owned: 1.0}], inputs), expected, rtol=1e-4, atol=1e-4)
    again = banked.read(tmp_path / "fused")
    assert {path: pair.rank for path, pair in again.modules.items()} == dict.fromkeys(fused.modules, fused.rank)


def test_each_row_gets_its_own_adapters_in_text_and_vision(tmp_path: Path) -> None:
    folders = [
        save_adapter(tmp_path / "0", 0, r=4, target_modules=EVERYWHERE),
        save_adapter(tmp_path / "1", 1, r=3, target_modules=EVERYWHERE, use_rslora=True),
        save_adapter(tmp_path / "2", 2, r=8),
    ]
    banked = ModelWithBank()
    held = [banked.hold(banked.read(folder)) for folder in folders]
    rows = [{held[0]: 1.0}, {}, {held[1]: 0.5, held[2]: 0.25}, {held[2]: 1.0}]
    inputs = prompts(4)
    together = banked.logits(rows, inputs)
    for n, row in enumerate(rows):
        patches = GRID[1] * GRID[2]
        alone = {
            "input_ids": inputs["input_ids"][n : n + 1],
            "mm_token_type_ids": inputs["mm_token_type_ids"][n : n + 1],
            "pixel_values": inputs["pixel_values"][n * patches : (n + 1) * patches],
            "image_grid_thw": inputs["image_grid_thw"][n : n + 1],
        }
        torch.testing.assert_close(together[n], banked.logits([row], alone)[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together[1], base_model()(**inputs).logits[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [{"init_lora_weights": "eva"}, {"init_lora_weights": "mica"}, {"butterfly_size": 16}, {"runtime_config": {}}],
)
def test_options_of_training_leave_logits_alone(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = save_adapter(tmp_path, 1, r=4)
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    banked, inputs = ModelWithBank(), prompts(1)
    owned = banked.hold(banked.read(folder))
    torch.testing.assert_close(banked.logits([{owned: 1.0}], inputs), peft_logits(folder, inputs), rtol=1e-4, atol=1e-4)


def test_selected_layers_without_tensors_stay_unchanged(tmp_path: Path) -> None:
    folder = save_adapter(tmp_path, 1, r=4)
    file = folder / "adapter_model.safetensors"
    save_file({key: tensor for key, tensor in load_file(file).items() if "layers.1" not in key}, file)
    banked, inputs = ModelWithBank(), prompts(1)
    owned = banked.hold(banked.read(folder))
    torch.testing.assert_close(banked.logits([{owned: 1.0}], inputs), peft_logits(folder, inputs), rtol=1e-4, atol=1e-4)


def test_tensors_that_peft_ignores_are_refused(tmp_path: Path) -> None:
    folder = save_adapter(tmp_path, 1, r=4, target_modules=["q_proj", "v_proj"])
    only_q = save_adapter(tmp_path / "q", 1, r=4, target_modules=["q_proj"])
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({key: tensor for key, tensor in tensors.items() if "q_proj" in key}, only_q / "adapter_model.safetensors")
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"target_modules": ["q_proj"]}))
    inputs = prompts(1)
    assert torch.equal(peft_logits(folder, inputs), peft_logits(only_q, inputs))
    with pytest.raises(CheckpointError, match=r"v_proj.*leave its module out"):
        ModelWithBank().read(folder)


@pytest.mark.parametrize("option", [{"use_dora": True}, {"bias": "lora_only"}, {"modules_to_save": ["lm_head"]}])
def test_unsupported_peft_tensors_are_refused(tmp_path: Path, option: dict[str, Any]) -> None:
    folder = save_adapter(tmp_path, 1, r=4, **option)
    with pytest.raises(CheckpointError):
        ModelWithBank().read(folder)
