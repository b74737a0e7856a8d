"""InternVL folders in the layout of transformers, against the original folder; adapters under either names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from generation_service.adapters.checkpoint.reader import read_checkpoint
from generation_service.models.base import BaseModel, LoadOptions
from generation_service.models.registry import family_of, load_base_model
from infra.contract.errors import CheckpointError
from infra.contract.prompt import ImagePart, Prompt
from tests.parity.prompt_logits import prompt_logits
from tests.support.checkpoints.internvl2 import TinyInternVL, language_linears, vision_linears
from tests.support.checkpoints.internvl_native import write_internvl_native
from tests.support.checkpoints.peft_adapters import TinyAdapter
from tests.support.harness.images import picture

pytest.importorskip("sentencepiece", reason="the reference module reads tokenizers with sentencepiece (extra dev)")
from tests.parity.internvl2_reference import InternVL2Reference, tiles

CPU = torch.device("cpu")
SIZES = {"text": [], "one image": [(100, 150)], "several images": [(57, 300), (112, 112), (40, 40)]}
SHAPES = {
    "untied": TinyInternVL("qwen2"),
    "tied": TinyInternVL("qwen2", tied=True),
    "InternVL3.5": TinyInternVL("qwen3", tied=True),
    "InternVL3.5-38B": TinyInternVL("qwen3", large_tower=True, qkv_bias=False),
}


def load(folder: Path, max_tiles: int | None = None) -> BaseModel:
    return load_base_model(folder, LoadOptions(CPU, torch.float32, max_tiles=max_tiles))


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_logits_match_original_folder(tmp_path: Path, shape: TinyInternVL, sizes: list[tuple[int, int]]) -> None:
    folder = write_internvl_native(tmp_path / "native", tmp_path / "original", shape)
    reference = InternVL2Reference(tmp_path / "original")
    images = [picture(width, height, seed) for seed, (width, height) in enumerate(sizes)]
    cut = [tiles(image, 56, 12) for image in images]
    marks = "".join("<img>" + "<IMG_CONTEXT>" * 4 * len(part) + "</img>\n" for part in cut)
    tokens = reference.tokenizer.encode(f"<|im_start|>user\n{marks}What?<|im_end|>\n<|im_start|>assistant\n")

    model = load(folder)
    prompt = model.encode(Prompt.of("What?", [ImagePart(b"decoded already") for _ in images]), images)

    assert prompt.tokens.tolist() == tokens
    assert prompt.image_tokens == 4 * sum(map(len, cut))
    torch.testing.assert_close(prompt_logits(model, prompt), reference.logits(tokens, cut), rtol=1e-4, atol=1e-4)
    assert model.description.eos_tokens == {reference.end}


def test_adapters_with_original_names_bind(tmp_path: Path) -> None:
    shape = TinyInternVL("qwen2")
    model = load(write_internvl_native(tmp_path / "native", tmp_path / "original", shape))
    TinyAdapter.random(language_linears(shape) | vision_linears(shape)).write(tmp_path / "adapter")
    read = read_checkpoint(tmp_path / "adapter", model.description.targets, model.canonical)
    assert read.modules.keys() == model.description.targets.keys()


def test_folder_is_described_without_weights_and_with_tile_limit(tmp_path: Path) -> None:
    folder = write_internvl_native(tmp_path / "native", tmp_path / "original", TinyInternVL("qwen2", max_tiles=6))
    model = load(folder, max_tiles=2)
    image = picture(100, 150)
    grids = model.encode(Prompt.of("x", [ImagePart(b"x")]), [image]).grids
    assert grids is not None
    assert grids.tolist() == [len(tiles(image, 56, 2))]
    (folder / "model.safetensors").unlink()
    assert family_of(folder).describe(folder).targets == model.description.targets
    assert family_of(folder).input_format(folder, LoadOptions(CPU)).image_limits["max_tiles"] == 6


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    folder = write_internvl_native(tmp_path / "native", tmp_path / "original", TinyInternVL("qwen2"))
    weights = load_file(folder / "model.safetensors")
    del weights["vision_tower.encoder.layer.1.lambda_2"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layer\.1\.lambda_2"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("config.json", {"text_config": {"model_type": "gemma"}}, r"language model is gemma.*It serves InternVL2"),
        ("config.json", {"text_config": {"model_type": "qwen3_moe"}}, r"is qwen3_moe, a mixture of experts.*It serves"),
        ("config.json", {"vision_feature_layer": -2}, r"features come from layer -2.*It serves InternVL2"),
        ("preprocessor_config.json", {"size": 448}, r"preprocessor_config\.json does not define how images are tiled"),
        ("preprocessor_config.json", {"image_mean": None}, r"does not define how images are tiled.*download it again"),
    ],
)
def test_unsupported_settings_are_refused_by_name(
    tmp_path: Path, name: str, change: dict[str, Any], match: str
) -> None:
    folder = write_internvl_native(tmp_path / "native", tmp_path / "original", TinyInternVL("qwen2"))
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | change))
    with pytest.raises(CheckpointError, match=match):
        load(folder)


def test_dynamic_rope_is_plain_within_max_positions(tmp_path: Path) -> None:
    shape = TinyInternVL("qwen2", rope_scaling={"type": "dynamic", "factor": 2.0}, max_positions=300)
    folder = write_internvl_native(tmp_path / "native", tmp_path / "original", shape)
    model = load(folder)
    prompt = model.encode(Prompt.of("What?"), [])
    expected = InternVL2Reference(tmp_path / "original").logits(prompt.tokens.tolist())
    torch.testing.assert_close(prompt_logits(model, prompt), expected, rtol=1e-4, atol=1e-4)
    assert model.description.max_positions == 300
