"""Errors for InternVL folders that are incomplete, broken or not supported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from generation_service.models.base import LoadOptions
from generation_service.models.registry import load_base_model
from infra.contract.errors import CheckpointError, ConfigurationError
from tests.support.checkpoints.internvl2 import TinyInternVL, write_internvl2
from tests.support.checkpoints.qwen2_vl import write_qwen2_vl

WEIGHTS = "model.safetensors"
OTHER = {"model_type": "other"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_internvl2(tmp_path / "base")


def assert_refused(folder: Path, match: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        load_base_model(folder, LoadOptions(torch.device("cpu"), torch.float32))


def edit(folder: Path, change: Callable[[dict[str, Any]], None], name: str = "config.json") -> None:
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


def rewrite(folder: Path, given: dict[str, Tensor], without: str = "") -> None:
    weights = {name: value for name, value in load_file(folder / WEIGHTS).items() if name != without}
    save_file(weights | given, folder / WEIGHTS, {"format": "pt"})


@pytest.mark.parametrize(
    ("original", "named"),
    [
        ("language_model.model.layers.1.attention.wqkv.weight", r"layers\.1\.self_attn\.k_proj\.weight"),
        ("language_model.model.layers.2.feed_forward.w3.weight", r"layers\.2\.mlp\.up_proj\.weight"),
        ("language_model.output.weight", r"lm_head\.weight"),
        ("vision_model.encoder.layers.0.ls2", r"layer\.0\.lambda_2"),
        ("vision_model.encoder.layers.1.attn.qkv.bias", r"layer\.1\.attention\.v_proj\.bias"),
        ("mlp1.0.bias", r"multi_modal_projector\.layer_norm\.bias"),
    ],
)
def test_missing_tensor_is_named(folder: Path, original: str, named: str) -> None:
    rewrite(folder, {}, without=original)
    assert_refused(folder, rf"missing from the files.*{named}")


@pytest.mark.parametrize(
    "name", ["language_model.model.layers.9.attention.wo.weight", "language_model.lm_head.weight", "mlp1.2.weight"]
)
def test_unexpected_or_duplicate_tensor_is_named(folder: Path, name: str) -> None:
    rewrite(folder, {name: torch.zeros(2)})
    assert_refused(folder, f"without a place in the model: {'.*'.join(name.split('.'))}")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("language_model.model.layers.0.attention.wqkv.weight", (120, 64)),
        ("vision_model.embeddings.position_embedding", (1, 65, 32)),
        ("mlp1.3.bias", (3,)),
    ],
)
def test_misshapen_tensor_is_named_with_both_shapes(folder: Path, name: str, shape: tuple[int, ...]) -> None:
    rewrite(folder, {name: torch.zeros(shape)})
    assert_refused(folder, rf"another shape.*{name} is \[{', '.join(map(str, shape))}\], not \[")


def test_no_value_is_read_before_all_tensors_bind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite(folder, {}, without="mlp1.3.weight")
    monkeypatch.setattr("generation_service.models.internvl.weights._Binding.read", lambda *_: pytest.fail("it read"))
    assert_refused(folder, r"linear_2\.weight")


def test_missing_shard_is_named(tmp_path: Path) -> None:
    folder = write_internvl2(tmp_path / "base", shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert_refused(folder, "model-00002-of-00003.*download the missing file")


def test_truncated_file_is_named(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])
    assert_refused(folder, r"model\.safetensors.*download it again")


@pytest.mark.parametrize("name", ["tokenizer_config.json", "tokenizer.model", WEIGHTS])
def test_missing_file_is_named_with_remedy(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert_refused(folder, rf"{name}.*(folder|download)")


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    assert_refused(folder, "convert them to safetensors")


@pytest.mark.parametrize(
    ("part", "given", "reason"),
    [
        ("vision_config", {"norm_type": "group_norm"}, "norm_type of its vision tower is 'group_norm'"),
        ("vision_config", {"qk_normalization": True, "layer_norm_eps": 1e-5}, "layer_norm_eps of its vision tower"),
        (
            "llm_config",
            {**OTHER, "architectures": ["Qwen3MoeForCausalLM"]},
            "is Qwen3MoeForCausalLM, a mixture of experts",
        ),
        (
            "llm_config",
            {**OTHER, "architectures": ["InternLM3ForCausalLM"]},
            "model is InternLM3ForCausalLM",
        ),
        ("", {"flash_relative_threshold": 0.5}, "it is a Flash variant"),
        (
            "llm_config",
            {**OTHER, "architectures": ["LlamaForCausalLM"]},
            "language model is LlamaForCausalLM",
        ),
        ("llm_config", {"architectures": None, "model_type": "yi"}, "language model is yi"),
        ("", {"select_layer": -4}, "select_layer is -4, not -1"),
        ("", {"ps_version": "v1"}, "ps_version is 'v1', not 'v2'"),
        ("", {"pad2square": True}, "pad2square is True"),
    ],
    ids=[
        "unknown norm",
        "other epsilon",
        "30B-A3B",
        "9B",
        "Flash",
        "40B",
        "another",
        "an inner layer",
        "transposed shuffle",
        "padding",
    ],
)
def test_unsupported_model_lists_supported_ones(folder: Path, part: str, given: dict[str, Any], reason: str) -> None:
    edit(folder, lambda config: (config[part] if part else config).update(given))
    assert_refused(folder, f"{reason}.*It serves InternVL2, 2.5, 3 and 3.5.*InternLM2, Qwen2, Qwen3")


@pytest.mark.parametrize("part", ["use_llm_lora", "use_backbone_lora"])
def test_unmerged_lora_of_internvl_must_be_merged(folder: Path, part: str) -> None:
    edit(folder, lambda config: config.update({part: 16}))
    at = "language_model.base_model.model." if part == "use_llm_lora" else "vision_model.base_model.model."
    rewrite(folder, {f"{at}layers.0.attn.lora_A.default.weight": torch.zeros(16, 64)})
    assert_refused(folder, rf"unmerged LoRA fine-tune \({part} 16\).*merge them first, with .*tools/merge_lora\.py")


def test_unmerged_lora_of_peft_must_be_merged(tmp_path: Path) -> None:
    folder = write_qwen2_vl(tmp_path / "base")
    rewrite(folder, {"model.layers.0.self_attn.q_proj.base_layer.weight": torch.zeros(4, 4)})
    assert_refused(folder, r"unmerged LoRA fine-tune: .*with merge_and_unload\(\) of PEFT")


def test_missing_config_key_is_named(folder: Path) -> None:
    edit(folder, lambda config: config["vision_config"].pop("hidden_size"))
    assert_refused(folder, "config.json does not describe an InternVL model: it has no 'hidden_size'")


def test_unknown_conversation_template_lists_known_ones(folder: Path) -> None:
    edit(folder, lambda config: config.update(template="internvl_zh"))
    assert_refused(folder, "'internvl_zh'; known are internlm2-chat, Hermes-2, phi3-chat, internvl2_5")


def test_unknown_rope_scaling_is_refused(folder: Path) -> None:
    edit(folder, lambda config: config["llm_config"].update(rope_scaling={"type": "yarn", "factor": 2}))
    assert_refused(folder, "rope_scaling of type 'yarn' is not supported")


def test_tokenizer_without_template_tokens_is_refused(folder: Path) -> None:
    (folder / "added_tokens.json").unlink()

    def forget(config: dict[str, Any]) -> None:
        tokens = config["added_tokens_decoder"]
        config["added_tokens_decoder"] = {n: t for n, t in tokens.items() if t["content"] != "<IMG_CONTEXT>"}

    edit(folder, forget, "tokenizer_config.json")
    assert_refused(folder, "no special token <IMG_CONTEXT>")


def test_tokenizer_larger_than_vocabulary_is_refused(folder: Path) -> None:
    edit(folder, lambda config: config["llm_config"].update(vocab_size=500))
    assert_refused(folder, "ids up to 60., but config.json has a vocabulary of 500")


@pytest.mark.parametrize("data", [b"", b"not a model", b"\x0a\xff", b"\xff" * 40, b"\x0a\x03\x0a\x01a"])
def test_file_that_is_not_sentencepiece_is_refused(folder: Path, data: bytes) -> None:
    (folder / "tokenizer.model").write_bytes(data)
    assert_refused(folder, r"tokenizer\.model is not a sentencepiece BPE model.*download it again")


def test_truncated_sentencepiece_model_is_refused(folder: Path) -> None:
    data = (folder / "tokenizer.model").read_bytes()
    (folder / "tokenizer.model").write_bytes(data[: len(data) // 2])
    assert_refused(folder, "not a sentencepiece BPE model")


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_qwen2_folder_without_vocabulary_is_refused(tmp_path: Path, name: str) -> None:
    folder = write_internvl2(tmp_path / "base", TinyInternVL("qwen2"))
    (folder / name).unlink()
    assert_refused(folder, f"has no {name}: give the complete folder")


def test_chat_template_for_an_original_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"name their conversation template in config\.json"):
        load_base_model(folder, LoadOptions(chat_template=tmp_path / "mine.jinja"))
