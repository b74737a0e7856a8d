"""Adapter lists: ids with a prefix, and entries that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.registration.adapter_list import BadEntry, read_adapter_list


def write_list(folder: Path, vectors: str = "mean.npy") -> Path:
    np = pytest.importorskip("numpy")
    np.save(folder / "mean.npy", np.ones(4, np.float32))
    entry = {"lora_name": "app_lora_clock", "lora_path": "elsewhere", "embedding_path": vectors, "rank": 8}
    file = folder / "app_loras_config.json"
    file.write_text(json.dumps([entry]), encoding="utf-8")
    return file


def test_prefix_keeps_same_names_of_two_base_models_apart(tmp_path: Path) -> None:
    file = write_list(tmp_path)
    ids = []
    for base_model, prefix in (("InternVL2-2B", ""), ("Qwen2-VL-2B", "qwen2vl.")):
        (entry,) = read_adapter_list(file, base_model=base_model, prefix=prefix)
        assert not isinstance(entry, BadEntry)
        ids.append((entry[1].adapter.adapter_id, entry[1].adapter.base_model, entry[1].adapter.kind))
    assert ids == [("app_lora_clock", "InternVL2-2B", "app"), ("qwen2vl.app_lora_clock", "Qwen2-VL-2B", "app")]


def test_absent_vectors_are_named_with_their_entry(tmp_path: Path) -> None:
    (entry,) = read_adapter_list(write_list(tmp_path, "gone.npy"), base_model="InternVL2-2B")
    assert isinstance(entry, BadEntry)
    assert (entry.name, "gone.npy cannot be read: No such file or directory" in entry.problem) == (
        "app_lora_clock",
        True,
    )
