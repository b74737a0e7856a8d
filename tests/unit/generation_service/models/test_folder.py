"""The digest that tells one base model from another without reading all of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from generation_service.models import folder as module
from generation_service.models.folder import folder_revision
from infra.contract.errors import CheckpointError

LARGE = 1 << 16


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a model whose weights are larger than the four samples of 16 bytes that are hashed."""
    monkeypatch.setattr(module, "_SAMPLES", 4)
    monkeypatch.setattr(module, "_SAMPLE_BYTES", 16)
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text("{}")
    (made / "model.safetensors").write_bytes(bytes(LARGE))
    return made


def change(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


def test_digest_does_not_depend_on_location(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "README.md").write_text("not part of the model")
    (copy / "cache.json").mkdir()
    assert folder_revision(copy) == folder_revision(folder)
    assert len(folder_revision(folder)) == 64


@pytest.mark.parametrize(
    "differ",
    [
        lambda folder: (folder / "config.json").write_text("[]"),
        lambda folder: (folder / "config.json").rename(folder / "configs.json"),
        lambda folder: (folder / "tokenizer.model").touch(),
        lambda folder: change(folder / "model.safetensors", 0),
        lambda folder: change(folder / "model.safetensors", LARGE // 2 + 15),
        lambda folder: (folder / "model.safetensors").write_bytes(bytes(LARGE + 1)),
    ],
    ids=["content", "name", "another file", "first piece", "third piece", "length"],
)
def test_other_model_has_other_digest(folder: Path, differ: Callable[[Path], object]) -> None:
    before = folder_revision(folder)
    differ(folder)
    assert folder_revision(folder) != before


def test_large_file_is_sampled(folder: Path) -> None:
    before = folder_revision(folder)
    change(folder / "model.safetensors", 20)
    assert folder_revision(folder) == before


def test_small_file_is_hashed_whole(folder: Path) -> None:
    (folder / "vocabulary.txt").write_bytes(bytes(50))
    before = folder_revision(folder)
    for position in range(50):
        change(folder / "vocabulary.txt", position)
        assert folder_revision(folder) != before
        change(folder / "vocabulary.txt", position)


def test_unreadable_file_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read: Permission denied"):
        folder_revision(folder)
