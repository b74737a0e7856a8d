"""`adapter_config.json`: which options are applied, and which are refused because they would change the answer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from generation_service.adapters.checkpoint.peft_config import PeftConfig, arithmetic
from generation_service.adapters.checkpoint.reader import read_checkpoint, read_config
from infra.contract.errors import CheckpointError
from tests.support.checkpoints.peft_adapters import TinyAdapter

SHAPES = {"model.layers.0.q_proj": (8, 8), "model.layers.1.k_proj": (8, 4)}


def same(name: str) -> str:
    return name


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("use_dora", True, "DoRA"),
        ("modules_to_save", ["lm_head"], "modules_to_save"),
        ("trainable_token_indices", [3], "trainable_token_indices"),
        ("fan_in_fan_out", True, "fan_in_fan_out"),
        ("bias", "lora_only", "bias is 'lora_only'"),
        ("lora_bias", True, "lora_bias"),
        ("layer_replication", [[0, 1]], "layer_replication"),
        ("target_parameters", ["experts"], "target_parameters"),
        ("alora_invocation_tokens", [1, 2], "aLoRA"),
        ("use_qalora", True, "QA-LoRA"),
        ("use_something_new", True, "use_something_new"),
        ("peft_type", "IA3", "peft_type is 'IA3'"),
        ("peft_type", None, "peft_type is None"),
        ("init_lora_weights", "pissa_niter_4", "path_initial_model_for_weight_conversion"),
        ("r", 0, "r must be a whole number from 1 to 65536, got '0'"),
        ("r", 2**17, "r must be a whole number"),
        ("r", None, "r must be a whole number"),
        ("r", "8", "r must be a whole number"),
        ("r", True, "r must be a whole number"),
        ("lora_alpha", None, "lora_alpha must be a finite number, got None"),
        ("lora_alpha", math.nan, "lora_alpha must be a finite number"),
        ("lora_alpha", 10**400, "lora_alpha must be a finite number, got 1000"),
        ("rank_pattern", {"q_proj": -1}, "rank_pattern"),
        ("rank_pattern", {"(": 1}, "not a regular expression"),
        ("alpha_pattern", [1], "alpha_pattern must be an object"),
    ],
)
def test_option_that_would_change_answer_is_refused_by_name(
    tmp_path: Path, option: str, value: Any, expected: str
) -> None:
    adapter = TinyAdapter.random(SHAPES, **{option: value})
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(adapter.write(tmp_path), SHAPES, same)
    assert expected in caught.value.message
    assert "adapter_config.json" in caught.value.message


def test_all_refusals_of_config_are_reported_together(tmp_path: Path) -> None:
    adapter = TinyAdapter.random(SHAPES, use_dora=True, bias="all", modules_to_save=["lm_head"])
    with pytest.raises(CheckpointError, match=r"DoRA.*modules_to_save.*bias is 'all'"):
        read_checkpoint(adapter.write(tmp_path), SHAPES, same)


@pytest.mark.parametrize(
    "target_modules",
    [["q_proj", "k_proj"], "all-linear", "^(model)(?!.*(lm_head|output|emb|wte|shared)).*", None],
    ids=["list", "all-linear", "regex with look-ahead", "unset"],
)
def test_tensors_bind_by_their_keys_for_any_form_of_target_modules(tmp_path: Path, target_modules: Any) -> None:
    adapter = TinyAdapter.random(SHAPES, target_modules=target_modules)
    assert read_checkpoint(adapter.write(tmp_path), SHAPES, same).modules.keys() == SHAPES.keys()


def test_additions_of_ms_swift_are_ignored(tmp_path: Path) -> None:
    swift: dict[str, Any] = {"lora_dtype": None, "lorap_lr_ratio": 16.0, "lorap_emb_lr": 1e-06, "swift_type": "LORA"}
    adapter = TinyAdapter.random(SHAPES, **swift, use_qa_lora=False, use_merged_linear=False, enable_lora=None)
    adapter.write(tmp_path)
    for name in ("args.json", "additional_config.json", "sft_args.json", "trainer_state.json", "README.md"):
        (tmp_path / name).write_text("not even JSON")
    (tmp_path / "training_args.bin").write_bytes(b"a pickle")
    assert read_checkpoint(tmp_path, SHAPES, same).rank == 4


def test_training_options_are_accepted(tmp_path: Path) -> None:
    adapter = TinyAdapter.random(
        SHAPES, lora_dropout=0.05, init_lora_weights="gaussian", loftq_config={}, lora_dtype="AUTO", inference_mode=True
    )
    assert read_checkpoint(adapter.write(tmp_path), SHAPES, same).rank == 4


def test_deeply_nested_config_is_refused(tmp_path: Path) -> None:
    (TinyAdapter.random(SHAPES).write(tmp_path) / "adapter_config.json").write_text("[" * 200_000)
    with pytest.raises(CheckpointError, match="not valid JSON"):
        read_checkpoint(tmp_path, SHAPES, same)


def test_config_that_is_not_object_is_refused(tmp_path: Path) -> None:
    (TinyAdapter.random(SHAPES).write(tmp_path) / "adapter_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="must hold a JSON object"):
        read_checkpoint(tmp_path, SHAPES, same)


def test_config_alone_gives_base_model_and_ranks(tmp_path: Path) -> None:
    adapter = TinyAdapter.random(SHAPES, rank=4, rank_pattern={"q_proj": 6})
    pattern = frozenset({adapter.config["target_modules"]})
    assert read_config(adapter.write(tmp_path)) == PeftConfig(4, 8.0, False, {"q_proj": 6}, {}, "tiny", pattern)
    assert read_config(tmp_path).largest_rank == 6
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    assert read_config(tmp_path).base_model == ""
    assert not read_config(tmp_path).target_modules
    adapter.config["target_modules"] = ["q_proj", "k_proj"]
    assert read_config(adapter.write(tmp_path)).target_modules == {"q_proj", "k_proj"}


LAYER = "model.language_model.layers.12.self_attn.q_proj"


def with_pattern(*patterns: str) -> PeftConfig:
    return arithmetic({"r": 4, "lora_alpha": 8, "rank_pattern": dict.fromkeys(patterns, 2)}, "adapter_config.json")


@pytest.mark.parametrize(
    "pattern",
    [
        "q_proj",
        LAYER,
        r"^model\.language_model\.layers\.12\.self_attn\.q_proj",
        r"layers\.\d+\.self_attn\.(q|k|v|o)_proj",
        r"(model\.)?language_model\.layers\.(1[0-9]|2[0-7])\..*_proj",
        r".*\.layers\.[0-9]+\..*(q_proj|k_proj|v_proj)",
        r"(?:[a-z]+\.)?\w+\.q_proj",
    ],
)
def test_patterns_written_by_libraries_are_applied(pattern: str) -> None:
    assert with_pattern(pattern).rank_of(LAYER) == 2
    assert with_pattern(pattern).rank_of("model.visual.merger.mlp.lm_head.out") == 4


def test_rank_pattern_for_every_layer_is_accepted() -> None:
    names = [f"model.language_model.layers.{layer}.self_attn.{name}_proj" for layer in range(300) for name in "qkvo"]
    assert with_pattern(*names).rank_of(names[-1]) == 2


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["a" * 513], "a pattern of 513 characters"),
        ([str(number) for number in range(4097)], "4097 patterns"),
        (["(?i)q_proj"], "not a regular expression"),
        (["a{99999999999}"], "not a regular expression"),
    ],
)
def test_oversized_or_invalid_patterns_are_refused(patterns: list[str], expected: str) -> None:
    with pytest.raises(CheckpointError, match=expected):
        with_pattern(*patterns)


def test_pattern_that_re2_does_not_match_is_refused_with_remedy() -> None:
    with pytest.raises(CheckpointError, match=r"rank_pattern has the pattern .*RE2 does not match it.*write it with"):
        with_pattern(r"^(model)(?!.*lm_head).*")


def test_patterns_of_largest_config_are_matched_against_every_layer() -> None:
    patterns = [r".*\.layers\.[0-9]+\.(\w+\.?)+!" + str(number) for number in range(200)]
    config = with_pattern(*patterns)
    assert {config.rank_of(LAYER.replace("12", str(layer))) for layer in range(50)} == {4}


def test_patterns_are_matched_only_against_layers_of_base_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PeftConfig, "rank_of", lambda *_: pytest.fail("tried"))
    adapter = TinyAdapter.random({"layers." + "a" * 10_000: (8, 8)}, rank_pattern={".*.*.*b": 2})
    with pytest.raises(CheckpointError, match="has no adaptable layer"):
        read_checkpoint(adapter.write(tmp_path), {**SHAPES}, same)
