"""Adapters read from PEFT folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.contract.errors import CheckpointError
from orchestrator.registration.peft_folder import read_adapter


def test_adapter_folder_gives_base_model_and_rank(tmp_path: Path) -> None:
    config = {"base_model_name_or_path": "/models/Qwen2-VL-7B-Instruct/", "r": 8, "rank_pattern": {"q_proj": 16}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    adapter = read_adapter("gmail", tmp_path, kind="app")
    assert (adapter.base_model, adapter.rank, adapter.checkpoint_uri) == ("Qwen2-VL-7B-Instruct", 16, str(tmp_path))
    assert read_adapter("gmail", Path("gmail"), base_model="there").checkpoint_uri == "gmail"


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_adapter_folder_without_usable_config_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        read_adapter("gmail", tmp_path)
