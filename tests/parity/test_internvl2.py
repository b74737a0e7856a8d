"""The InternVL2 loader against an independent implementation, on tiny checkpoints in the original layouts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL.Image import Image
from safetensors.torch import load_file, save_file

from generation_service.models.base import BaseModel, LoadOptions
from generation_service.models.internvl.tiles import Tiling
from generation_service.models.registry import family_of, load_base_model
from infra.contract.errors import CheckpointError, ConfigurationError
from infra.contract.prompt import ImagePart, Prompt
from tests.parity.image_tokens import check_one_image_is_held_at_a_time, check_stops_at_the_image_too_many
from tests.parity.prompt_logits import prompt_logits
from tests.support.checkpoints.internvl2 import TinyInternVL, language_linears, write_internvl2
from tests.support.harness.images import picture

pytest.importorskip("sentencepiece", reason="the reference reads tokenizer.model with sentencepiece (extra dev)")
from tests.parity.internvl2_reference import InternVL2Reference, tiles

CPU = torch.device("cpu")
SIZES = {"text": [], "one image": [(100, 150)], "several images": [(57, 300), (112, 112), (40, 40)]}
SHORT = {"type": "su", "short_factor": [1 + 0.2 * i for i in range(8)], "long_factor": [4.0 + i for i in range(8)]}
LAYOUTS: dict[str, tuple[TinyInternVL, dict[str, Any]]] = {
    "2B": (TinyInternVL(), {}),
    "2B of one kv head, sharded": (TinyInternVL(kv_heads=1, layers=2), {"shards": 3}),
    "2B of one query a kv head, tied": (TinyInternVL(kv_heads=4, tied=True), {}),
    "2B with biases, without vision qkv biases": (TinyInternVL(bias=True, qkv_bias=False), {"shards": 2}),
    "2B in bfloat16": (TinyInternVL(), {"dtype": torch.bfloat16, "shards": 2}),
    "2B of linear rotations": (TinyInternVL(rope_scaling={"type": "linear", "factor": 3.0}), {}),
    "2B at the end of its positions": (TinyInternVL(max_positions=104, rope_theta=100.0), {}),
    "1B": (TinyInternVL("qwen2"), {}),
    "1B tied": (TinyInternVL("qwen2", tied=True), {"shards": 2}),
    "InternVL3-1B": (TinyInternVL("qwen2", template="internvl2_5", tied=True), {"shards": 2}),
    "InternVL3-38B": (TinyInternVL("qwen2", template="internvl2_5", large_tower=True, qkv_bias=False), {}),
    "InternVL3.5-1B": (TinyInternVL("qwen3", tied=True), {}),
    "InternVL3.5-8B": (TinyInternVL("qwen3", kv_heads=1), {"shards": 2, "dtype": torch.bfloat16}),
    "InternVL3.5-38B": (TinyInternVL("qwen3", large_tower=True, qkv_bias=False), {}),
    "4B": (TinyInternVL("phi3", rope_scaling=SHORT), {}),
    "4B without long rotations": (TinyInternVL("phi3", kv_heads=4), {"shards": 2, "dtype": torch.bfloat16}),
}


def load(folder: Path, **options: Any) -> BaseModel:
    return load_base_model(folder, LoadOptions(CPU, torch.float32, **options))


def prompt_of(text: str, images: Sequence[Image]) -> Prompt:
    return Prompt.of(text, [ImagePart(b"decoded already") for _ in images])


def pictures(sizes: Sequence[tuple[int, int]]) -> list[Image]:
    return [picture(width, height, seed) for seed, (width, height) in enumerate(sizes)]


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(("shape", "layout"), LAYOUTS.values(), ids=LAYOUTS)
def test_logits_match_independent_implementation(
    tmp_path: Path, shape: TinyInternVL, layout: dict[str, Any], sizes: list[tuple[int, int]]
) -> None:
    folder = write_internvl2(tmp_path / "base", shape, **layout)
    images = pictures(sizes)
    cut = [tiles(image, shape.image_size, shape.max_tiles) for image in images]
    reference = InternVL2Reference(folder)
    expected_tokens = reference.prompt("What is on the screen?", cut)

    model = load(folder)
    prompt = model.encode(prompt_of("What is on the screen?", images), images)

    assert prompt.tokens.tolist() == expected_tokens
    assert prompt.image_tokens == shape.tile_tokens * sum(map(len, cut))
    assert prompt.positions.tolist() == [list(range(prompt.length))]
    assert prompt.position_delta == 0
    torch.testing.assert_close(
        prompt_logits(model, prompt), reference.logits(expected_tokens, cut), rtol=1e-4, atol=1e-4
    )


def test_weights_keep_checkpoint_dtype_by_default(tmp_path: Path) -> None:
    folder = write_internvl2(tmp_path / "base", dtype=torch.bfloat16)
    stored = load_file(folder / "model.safetensors")
    as_stored = load_base_model(folder, LoadOptions(CPU))
    assert as_stored.description.dtype == torch.bfloat16
    assert {value.dtype for value in as_stored.module.parameters()} == {torch.bfloat16}
    assert as_stored.description.weight_bytes == sum(value.nbytes for value in stored.values())
    assert load(folder).description.weight_bytes == 2 * as_stored.description.weight_bytes


def test_stored_head_wins_over_tied_config(tmp_path: Path) -> None:
    folder = write_internvl2(tmp_path / "base", TinyInternVL(tied=True))
    weights = load_file(folder / "model.safetensors")
    embedding = weights["language_model.model.tok_embeddings.weight"]
    head = torch.randn_like(embedding)
    for stored in (embedding.clone(), head):
        save_file(weights | {"language_model.output.weight": stored}, folder / "model.safetensors")
        module = load(folder).module
        assert torch.equal(module.lm_head.weight, stored)  # type: ignore[union-attr,arg-type]
        tied = module.lm_head.weight is module.model.language_model.embed_tokens.weight  # type: ignore[union-attr]
        assert tied == (stored is not head)


def test_image_has_at_most_max_tiles(tmp_path: Path) -> None:
    folder = write_internvl2(tmp_path / "base", TinyInternVL(max_tiles=8))
    image = picture(300, 500)
    for most, expected in ((None, 8), (4, 4), (2, 2), (1, 1), (20, 20)):
        prompt = load(folder, max_tiles=most).encode(prompt_of("x", [image]), [image])
        cut = tiles(image, 56, expected)
        assert prompt.pixels is not None
        assert len(cut) <= expected + 1
        torch.testing.assert_close(prompt.pixels, cut, rtol=0, atol=1e-6)


def test_max_tiles_below_model_minimum_is_refused(tmp_path: Path) -> None:
    folder = write_internvl2(tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"min_dynamic_patch": 3}))
    with pytest.raises(ConfigurationError, match=r"max_tiles is 2, below the 3 tiles"):
        load(folder, max_tiles=2)


@pytest.mark.parametrize(
    ("changes", "count"),
    [({"dynamic_image_size": False}, 1), ({"use_thumbnail": False}, 2), ({"max_dynamic_patch": None}, 13)],
)
def test_tiling_follows_config(tmp_path: Path, changes: dict[str, Any], count: int) -> None:
    folder = write_internvl2(tmp_path / "base", TinyInternVL(max_tiles=2))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    image = picture(300, 400) if count == 13 else picture(50, 100)
    grids = load(folder).encode(prompt_of("x", [image]), [image]).grids
    assert grids is not None
    assert grids.tolist() == [count]


def test_one_image_is_held_at_a_time(tmp_path: Path) -> None:
    check_one_image_is_held_at_a_time(load(write_internvl2(tmp_path / "base")))


def test_excess_images_are_refused_before_tiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(write_internvl2(tmp_path / "base"))
    calls: list[Image] = []
    cut = Tiling.tiles

    def counted(self: Tiling, image: Image) -> torch.Tensor:
        calls.append(image)
        return cut(self, image)

    monkeypatch.setattr(Tiling, "tiles", counted)
    check_stops_at_the_image_too_many(model, lambda: len(calls))


def test_tile_batches_give_same_embeddings(tmp_path: Path) -> None:
    folder = write_internvl2(tmp_path / "base")
    model = load(folder)
    images = pictures([(300, 400)] * 3)
    prompt = model.encode(prompt_of("x", images), images)
    assert prompt.pixels is not None
    assert len(prompt.pixels) == 39
    reference = InternVL2Reference(folder)
    cut = [tiles(image, 56, 12) for image in images]
    with torch.inference_mode():
        embedded = model.embed(prompt)[0][prompt.tokens == reference.image_token]
    seen = torch.cat([reference.see(tile) for part in cut for tile in part])
    torch.testing.assert_close(embedded, seen, rtol=1e-4, atol=1e-4)


def test_max_positions_ends_before_length_dependent_rope(tmp_path: Path) -> None:
    dynamic = write_internvl2(tmp_path / "2b", TinyInternVL(max_positions=300))
    long = write_internvl2(tmp_path / "4b", TinyInternVL("phi3", rope_scaling=SHORT))
    assert load(dynamic).description.max_positions == 300
    assert load(long).description.max_positions == 512


def test_every_linear_layer_except_head_is_adaptable(tmp_path: Path) -> None:
    shape = TinyInternVL()
    targets = load(write_internvl2(tmp_path / "base", shape)).description.targets
    assert len(targets) == 7 * shape.layers + 6 * shape.vision_depth + 2
    assert targets["model.language_model.layers.0.mlp.down_proj"] == (shape.intermediate, shape.hidden)
    assert targets["model.language_model.layers.0.self_attn.k_proj"] == (shape.hidden, 32)
    phi3 = TinyInternVL("phi3")
    targets = load(write_internvl2(tmp_path / "phi3", phi3)).description.targets
    assert len(targets) == len(language_linears(phi3)) + 6 * phi3.vision_depth + 2


def test_answer_ends_at_template_separator_and_generation_config_tokens(tmp_path: Path) -> None:
    folder = write_internvl2(tmp_path / "base")
    end = InternVL2Reference(folder).end
    assert load(folder).description.eos_tokens == {end}
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [end, 2]}))
    assert load(folder).description.eos_tokens == {end, 2}
    (folder / "generation_config.json").unlink()
    assert load(folder).description.eos_tokens == {end}


def test_folder_is_described_without_weights(tmp_path: Path) -> None:
    folder = write_internvl2(tmp_path / "base", dtype=torch.bfloat16)
    model = load(folder)
    (folder / "model.safetensors").unlink()
    architecture = family_of(folder).describe(folder)
    assert architecture.parameters * 4 == model.description.weight_bytes
    assert architecture.dtype == torch.bfloat16
    assert architecture.targets == model.description.targets
    inputs = family_of(folder).input_format(folder, LoadOptions(CPU, max_tiles=3))
    assert inputs.tokens == model.description.vocab_size
    assert inputs.image_limits == {"tile_size": 56, "min_tiles": 1, "max_tiles": 3, "tokens_per_tile": 4}


def test_shape_that_transformers_rejects_is_checkpoint_error(tmp_path: Path) -> None:
    folder = write_internvl2(tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    config["llm_config"]["num_attention_heads"] = 5
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load(folder)
