"""Every option of PEFT's LoraConfig is decided: applied, without effect, or refused by name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, LoraConfig, PeftType

from generation_service.adapters.checkpoint.peft_config import parse_config
from generation_service.adapters.checkpoint.peft_options import (
    APPLIED,
    REFUSED,
    WITHOUT_EFFECT,
    refusals,
    unknown_settings,
)
from infra.contract.errors import CheckpointError

PLAIN: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}


def test_every_field_of_installed_lora_config_is_decided_once() -> None:
    fields = [field.name for field in dataclasses.fields(LoraConfig)]
    assert sorted([*APPLIED, *WITHOUT_EFFECT, *REFUSED]) == sorted(fields)


def test_config_with_every_default_of_peft_is_accepted(tmp_path: Path) -> None:
    LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"]).save_pretrained(tmp_path)
    written = (tmp_path / "adapter_config.json").read_bytes()
    assert len(json.loads(written)) >= len(APPLIED) + len(WITHOUT_EFFECT) + len(REFUSED) - 1
    assert parse_config(written, "adapter_config.json").target_modules == {"q_proj"}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_option_is_named_with_remedy_only_if_set(name: str) -> None:
    for unset in (None, False, [], {}):
        assert not refusals(PLAIN | {name: unset})
    for value in (True, {"a": 1}, ["x"], [1]):
        (refused,) = refusals(PLAIN | {name: value})
        assert name in refused
        assert refused.endswith("train without it, or merge the adapter into the base model and serve that")


WRONG = {str: 5, int: "8", float: "8", bool: "false", dict: [1], list: {"a": 1}}


@pytest.mark.parametrize(
    "name", sorted({**APPLIED, **WITHOUT_EFFECT}.keys() - {"peft_type", "bias", "init_lora_weights"})
)
def test_option_of_wrong_type_is_named(name: str) -> None:
    kinds, words = (APPLIED | WITHOUT_EFFECT)[name]
    wrong = {"a": 1} if isinstance(kinds, tuple) else WRONG[kinds]
    assert any(f"{name} must be {words}, got" in refused for refused in refusals(PLAIN | {name: wrong}))


@pytest.mark.parametrize("init", [True, False, "gaussian", "eva", "orthogonal", "mica", None])
def test_initialisation_that_leaves_base_model_alone_is_accepted(init: Any) -> None:
    assert not refusals(PLAIN | {"init_lora_weights": init})


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "unheard_of"])
def test_initialisation_that_changes_base_model_is_refused(init: str) -> None:
    (refused,) = refusals(PLAIN | {"init_lora_weights": init})
    assert init in refused


@pytest.mark.parametrize(
    "kind", [*sorted(set(PEFT_TYPE_TO_CONFIG_MAPPING) - {PeftType.LORA}), "lora", 5, None, ["LORA"]]
)
def test_other_methods_of_peft_are_refused_by_name(kind: Any) -> None:
    value = kind.value if isinstance(kind, PeftType) else kind
    (refused,) = refusals(PLAIN | {"peft_type": value})
    assert repr(value) in refused
    assert "train a LoRA, or merge" in refused


def test_mlx_config_is_named() -> None:
    (refused,) = refusals({"fine_tune_type": "lora", "lora_parameters": {"rank": 8, "scale": 20.0}})
    assert "MLX" in refused


@pytest.mark.parametrize("value", [True, {"a": 1}, ["x"]])
def test_unknown_switch_is_refused_by_name(value: Any) -> None:
    (refused,) = refusals(PLAIN | {"butterfly_config": value})
    assert "butterfly_config is set, a LoRA option that this server does not know" in refused


@pytest.mark.parametrize("value", [None, False, 0, 16, "butterfly.core", [], {}, ""])
def test_unknown_parameter_of_switch_that_is_off_is_tolerated(value: Any) -> None:
    content = PLAIN | {"butterfly_size": value}
    assert not refusals(content)
    assert unknown_settings(content) == (["butterfly_size"] if value else [])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target_modules": "q_proj", "layers_to_transform": [0]}, "layers_to_transform` cannot be used when"),
        ({"target_modules": ["q_proj"], "layers_pattern": "layers"}, "layers_to_transform` must also be specified"),
        ({"target_modules": ["q_proj", 5]}, "target_modules must be a string or an array of strings"),
        ({"target_modules": ["q"], "layers_to_transform": [0, "1"]}, "layers_to_transform must be a whole number"),
        ({"target_modules": ["q"], "layers_to_transform": 0, "layers_pattern": "(a+)+"}, "must name lists of layers"),
        ({"target_modules": "("}, "target_modules is '\\(': it is not a regular expression"),
    ],
)
def test_selection_that_peft_refuses_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        parse_config(json.dumps(PLAIN | options).encode(), "adapter_config.json")
