"""The Qwen2-VL loader against an independent implementation, on tiny checkpoints in the original layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL.Image import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from generation_service.models.base import BaseModel, LoadOptions
from generation_service.models.registry import load_base_model
from infra.contract.errors import CheckpointError, ConfigurationError, InvalidArgumentError
from infra.contract.prompt import ImagePart, Message, Prompt, Role, TextPart
from tests.parity.image_tokens import check_one_image_is_held_at_a_time, check_stops_at_the_image_too_many
from tests.parity.prompt_logits import prompt_logits
from tests.parity.qwen2_vl_reference import Qwen2VLReference, patches
from tests.support.checkpoints.qwen2_vl import TinyShape, write_qwen2_vl
from tests.support.harness.images import picture

CPU = torch.device("cpu")
SIZES = {"text": [], "one image": [(100, 150)], "several images": [(57, 300), (112, 112), (40, 40)]}


def load(folder: Path, max_pixels: int | None = None) -> BaseModel:
    return load_base_model(folder, LoadOptions(CPU, torch.float32, max_pixels))


def prompt_of(text: str, images: list[Image]) -> Prompt:
    return Prompt.of(text, [ImagePart(b"decoded already") for _ in images])


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(
    ("shape", "shards"),
    [(TinyShape(), 1), (TinyShape(tied=True), 1), (TinyShape(kv_heads=1, layers=2), 3)],
    ids=["untied", "tied", "sharded"],
)
def test_logits_match_independent_implementation(
    tmp_path: Path, shape: TinyShape, shards: int, sizes: list[tuple[int, int]]
) -> None:
    folder = write_qwen2_vl(tmp_path / "base", shape, shards=shards)
    images = [picture(width, height, seed) for seed, (width, height) in enumerate(sizes)]
    reference = Qwen2VLReference(folder)
    cut = [patches(image) for image in images]
    expected_tokens = reference.prompt("What is on the screen?", cut)

    model = load(folder)
    prompt = model.encode(prompt_of("What is on the screen?", images), images)

    assert prompt.tokens.tolist() == expected_tokens
    assert prompt.image_tokens == sum(image.merged_tokens for image in cut)
    assert torch.equal(prompt.positions, reference.positions(expected_tokens, cut))
    assert prompt.position_delta == int(prompt.positions.max()) + 1 - prompt.length
    torch.testing.assert_close(
        prompt_logits(model, prompt), reference.logits(expected_tokens, cut), rtol=1e-4, atol=1e-4
    )


def test_bfloat16_checkpoint_widens_exactly(tmp_path: Path) -> None:
    folder = write_qwen2_vl(tmp_path / "base", dtype=torch.bfloat16)
    reference = Qwen2VLReference(folder)
    model = load(folder)
    prompt = model.encode(Prompt.of("Scroll down."), [])
    expected = reference.logits(prompt.tokens.tolist())
    torch.testing.assert_close(prompt_logits(model, prompt), expected, rtol=1e-4, atol=1e-4)


def test_images_are_resized_to_max_pixels(tmp_path: Path) -> None:
    folder = write_qwen2_vl(tmp_path / "base")
    image = picture(300, 500)
    prompt = load(folder, max_pixels=20000).encode(prompt_of("x", [image]), [image])
    cut = patches(image, max_pixels=20000)
    assert prompt.image_tokens == cut.merged_tokens < 300 * 500 // 28**2
    assert prompt.pixels is not None
    torch.testing.assert_close(prompt.pixels, cut.values, rtol=1e-4, atol=1e-4)


def test_one_image_is_held_at_a_time(tmp_path: Path) -> None:
    check_one_image_is_held_at_a_time(load(write_qwen2_vl(tmp_path / "base")))


def test_excess_images_are_refused_before_preprocessing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(write_qwen2_vl(tmp_path / "base"))
    calls: list[object] = []
    patchify = Qwen2VLImageProcessorPil.patchify

    def counted(self: Any, image: object, **options: Any) -> Any:
        calls.append(image)
        return patchify(self, image, **options)

    monkeypatch.setattr(Qwen2VLImageProcessorPil, "patchify", counted)
    check_stops_at_the_image_too_many(model, lambda: len(calls))


def test_pixels_are_stored_in_model_dtype(tmp_path: Path) -> None:
    folder, image = write_qwen2_vl(tmp_path / "base", dtype=torch.bfloat16), picture(100, 150)
    prompt = load_base_model(folder, LoadOptions(CPU)).encode(prompt_of("x", [image]), [image])
    exact = load(folder).encode(prompt_of("x", [image]), [image])
    assert prompt.pixels is not None
    assert exact.pixels is not None
    assert prompt.pixels.dtype is torch.bfloat16
    assert torch.equal(prompt.pixels, exact.pixels.bfloat16())


def test_max_pixels_below_model_minimum_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="3136"):
        load(write_qwen2_vl(tmp_path / "base"), max_pixels=100)


def test_extreme_aspect_ratio_is_invalid_argument(tmp_path: Path) -> None:
    image = picture(2000, 4)
    with pytest.raises(InvalidArgumentError, match="aspect ratio") as caught:
        load(write_qwen2_vl(tmp_path / "base")).encode(prompt_of("x", [image]), [image])
    assert caught.value.field == "messages[0].parts[0].image"


@pytest.mark.parametrize(
    "text", ["plain", "\n\n  leading", "trailing \n", "Straße, naïve 日本語 🙂", "e\u0301 is normalised", "a" * 200]
)
def test_ordinary_text_matches_tokenising_whole_conversation(tmp_path: Path, text: str) -> None:
    folder = write_qwen2_vl(tmp_path / "base")
    tokens = load(folder).encode(Prompt.of(text), []).tokens.tolist()
    assert tokens == Qwen2VLReference(folder).prompt(text)


@pytest.mark.parametrize("mark", ["<|im_end|>", "<|image_pad|>", "<|im_start|>system\n", "<|endoftext|>"])
def test_special_tokens_in_text_are_ordinary_characters(tmp_path: Path, mark: str) -> None:
    folder = write_qwen2_vl(tmp_path / "base")
    model = load(folder)
    special = set(Qwen2VLReference(folder).tokenizer.get_added_tokens_decoder())
    harmless = model.encode(Prompt.of("hello"), []).tokens.tolist()
    tokens = model.encode(Prompt.of(f"hello{mark}"), []).tokens.tolist()
    assert [token for token in tokens if token in special] == [token for token in harmless if token in special]
    assert f"hello{mark}" in model.decode(tokens)


def test_multi_turn_conversation_follows_template(tmp_path: Path) -> None:
    folder = write_qwen2_vl(tmp_path / "base")
    model = load(folder)
    image = picture(56, 56)
    conversation = Prompt(
        (
            Message(Role.SYSTEM, (TextPart("Be brief."),)),
            Message(Role.USER, (TextPart("Look: "), ImagePart(b"x"), TextPart(" what is it?"))),
            Message(Role.ASSISTANT, (TextPart("A bag."),)),
            Message(Role.USER, (TextPart("Sure?"),)),
        )
    )
    pads = "<|image_pad|>" * 4
    expected = (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        f"<|im_start|>user\nLook: <|vision_start|>{pads}<|vision_end|> what is it?<|im_end|>\n"
        "<|im_start|>assistant\nA bag.<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = Qwen2VLReference(folder).tokenizer.encode(expected).ids
    assert model.encode(conversation, [image]).tokens.tolist() == ids


def test_adapter_keys_of_all_library_versions_name_same_modules(tmp_path: Path) -> None:
    model = load(write_qwen2_vl(tmp_path / "base"))
    spellings = {
        "model.language_model.layers.1.self_attn.q_proj": [
            "model.layers.1.self_attn.q_proj",
            "model.language_model.layers.1.self_attn.q_proj",
            "language_model.model.layers.1.self_attn.q_proj",
            "base_model.model.model.layers.1.self_attn.q_proj",
        ],
        "model.visual.blocks.0.attn.qkv": ["visual.blocks.0.attn.qkv", "model.visual.blocks.0.attn.qkv"],
        "model.visual.merger.mlp.2": ["visual.merger.mlp.2", "model.visual.merger.mlp.2"],
    }
    for canonical, names in spellings.items():
        assert canonical in model.description.targets
        assert {model.canonical(name) for name in names} == {canonical}


def test_every_linear_layer_except_head_is_adaptable(tmp_path: Path) -> None:
    shape = TinyShape()
    targets = load(write_qwen2_vl(tmp_path / "base", shape)).description.targets
    assert len(targets) == 7 * shape.layers + 4 * shape.vision_depth + 2
    assert targets["model.language_model.layers.0.mlp.down_proj"] == (shape.intermediate, shape.hidden)


def test_eos_tokens_come_from_generation_config_else_config(tmp_path: Path) -> None:
    folder = write_qwen2_vl(tmp_path / "base")
    given = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert load(folder).description.eos_tokens == set(given)
    (folder / "generation_config.json").unlink()
    assert load(folder).description.eos_tokens == {json.loads((folder / "config.json").read_text())["eos_token_id"]}


def test_chat_template_may_be_separate_file(tmp_path: Path) -> None:
    folder = write_qwen2_vl(tmp_path / "base")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert load(folder).encode(Prompt.of("hi"), []).tokens.tolist() == Qwen2VLReference(folder).prompt("hi")
    (folder / "chat_template.json").unlink()
    with pytest.raises(CheckpointError, match="chat template"):
        load(folder)


def test_missing_vocabulary_is_an_error(tmp_path: Path) -> None:
    folder = write_qwen2_vl(tmp_path / "base")
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (folder / name).unlink()
    with pytest.raises(CheckpointError, match=r"no readable tokenizer.*tokenizer\.json"):
        load(folder)


def rewrite(folder: Path, weights: dict[str, Tensor]) -> None:
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    folder = write_qwen2_vl(tmp_path / "base")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    rewrite(folder, weights)
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        load(folder)


def test_unexpected_tensor_is_named(tmp_path: Path) -> None:
    folder = write_qwen2_vl(tmp_path / "base")
    rewrite(folder, load_file(folder / "model.safetensors") | {"model.layers.9.extra.weight": torch.zeros(2)})
    with pytest.raises(CheckpointError, match=r"layers\.9\.extra\.weight"):
        load(folder)


def test_misshapen_tensor_is_named(tmp_path: Path) -> None:
    folder = write_qwen2_vl(tmp_path / "base")
    rewrite(folder, load_file(folder / "model.safetensors") | {"visual.merger.mlp.0.bias": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"merger\.mlp\.0\.bias"):
        load(folder)


def test_missing_untied_head_is_refused(tmp_path: Path) -> None:
    folder = write_qwen2_vl(tmp_path / "base")
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    rewrite(folder, weights)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        load(folder)


def test_missing_shard_is_named(tmp_path: Path) -> None:
    folder = write_qwen2_vl(tmp_path / "base", shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00003"):
        load(folder)


def test_truncated_file_is_named(tmp_path: Path) -> None:
    folder = write_qwen2_vl(tmp_path / "base")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*download it again"):
        load(folder)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_missing_file_is_named_with_remedy(tmp_path: Path, name: str) -> None:
    folder = write_qwen2_vl(tmp_path / "base")
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{name}.*(folder|download)"):
        load(folder)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = write_qwen2_vl(tmp_path / "base")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="convert them to safetensors"):
        load(folder)


def test_missing_folder_is_named_with_remedy(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere.*--model-path"):
        load(tmp_path / "nowhere")


def test_unsupported_family_lists_supported_ones(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "unheard-of"}))
    with pytest.raises(CheckpointError, match=r"'unheard-of'.*serves: .*qwen2_vl"):
        load(tmp_path)
