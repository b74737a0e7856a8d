"""Folders that no family serves: what they are, and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from generation_service.models.registry import FAMILIES, family_of
from generation_service.models.unserved import UNSERVED
from infra.contract.errors import CheckpointError


def folder_of(tmp_path: Path, **config: object) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize(
    ("model_type", "match"),
    [
        ("qwen3_vl_moe", r"is Qwen3-VL with a mixture of experts; take a dense one"),
        ("glm4v", r"is GLM-4V; take Qwen3-VL"),
        ("mllama", r"is Llama 3\.2 Vision; .*Llama 3\.2 1B and 3B for text"),
        ("gemma3", r"is Gemma 3 with images.*gemma3_text"),
        ("bert", r"is BERT: it generates no text"),
    ],
)
def test_known_model_type_is_named_with_remedy(tmp_path: Path, model_type: str, match: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        family_of(folder_of(tmp_path, model_type=model_type))


def test_unknown_model_type_lists_served_ones(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'my_model'.*it serves: .*internvl.*qwen3_vl"):
        family_of(folder_of(tmp_path, model_type="my_model"))


def test_no_served_type_is_called_unserved() -> None:
    assert not UNSERVED.keys() & {family.model_type for family in FAMILIES}


@pytest.mark.parametrize("model_type", [..., None, "", ["llama"], 3])
def test_config_without_model_type_is_refused_by_name(tmp_path: Path, model_type: object) -> None:
    config = {"hidden_size": 64} if model_type is ... else {"model_type": model_type}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json has no model_type"):
        family_of(tmp_path)
