"""Backup and restore."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from infra.contract.adapter import Adapter
from infra.contract.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
)
from retrieval_service.catalogue import backup
from retrieval_service.catalogue.collections import collection_info
from retrieval_service.catalogue.qdrant import Qdrant, QdrantFolder
from retrieval_service.indexing import ExampleVectors, Indexer
from tests.support.harness.catalogue_world import NEW, OLD, CatalogueWorld, best_ids


def test_restore_brings_back_everything_in_backup(world: CatalogueWorld, tmp_path: Path) -> None:
    catalogue = world.open(OLD)
    one = world.register(catalogue, OLD, "one", "red shoes", "blue shoes")
    Indexer(OLD, catalogue, 64).create(Adapter("ready", "base", "r"), ExampleVectors((np.ones(16, np.float32),)))
    vectors = catalogue.look_up("one", with_vectors=True).vectors
    with world.qdrant.session() as client:
        backup.write_backup(backup.take_backup(client, world.name), tmp_path / "backup.zip")
        content = backup.read_backup(tmp_path / "backup.zip")
        catalogue.delete("one")
        world.register(catalogue, OLD, "two", "mail")
        with pytest.raises(FailedPreconditionError, match=r"not empty.*--replace"):
            backup.restore_backup(client, world.name, content, replace=False, indexed=world.qdrant.shared)
        backup.restore_backup(client, world.name, content, replace=True, indexed=world.qdrant.shared)
    assert catalogue.get("one") == one  # the running service sees it
    assert set(best_ids(catalogue, OLD, "shoes")) == {"one", "ready"}
    np.testing.assert_allclose(catalogue.look_up("one", with_vectors=True).vectors, vectors, atol=1e-6)
    assert world.reindex(NEW, skip_without_examples=True).skipped == ("ready",)
    with world.qdrant.session() as client:
        assert collection_info(client, world.name).previous


def spoiled(file: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    with zipfile.ZipFile(file) as opened:
        content = {name: opened.read(name) for name in opened.namelist()}
    change(content)
    with zipfile.ZipFile(file, "w") as opened:
        for name, data in content.items():
            opened.writestr(name, data)


def _other_format(content: dict[str, bytes]) -> None:
    content["catalogue.json"] = json.dumps(json.loads(content["catalogue.json"]) | {"format": "9"}).encode()


def _pickled(content: dict[str, bytes]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], dtype=object), allow_pickle=True)
    content["vectors.npy"] = buffer.getvalue()


def _short(content: dict[str, bytes]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.ones((1, 16), np.float32))
    content["vectors.npy"] = buffer.getvalue()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_other_format, "format is '9'"),
        (_pickled, "pickle|Object arrays"),
        (_short, "have 2 vectors"),
        (lambda content: content.pop("prompts.jsonl"), "not a complete backup"),
        (lambda content: content.update({"catalogue.json": b"{"}), "not a complete backup"),
    ],
)
def test_invalid_backup_is_refused(tmp_path: Path, change: Callable[[dict[str, bytes]], None], problem: str) -> None:
    file = tmp_path / "backup.zip"
    with closing(Qdrant(QdrantFolder(tmp_path / "qdrant"))) as qdrant, qdrant.session() as client:
        world = CatalogueWorld(qdrant)
        world.register(world.open(OLD), OLD, "one", "red", "blue")
        backup.write_backup(backup.take_backup(client, world.name), file)
    spoiled(file, change)
    with pytest.raises(InvalidArgumentError, match=problem):
        backup.read_backup(file)


def test_restore_keeps_one_previous_state_and_only_examples_of_backup(world: CatalogueWorld) -> None:
    catalogue = world.open(OLD)
    Indexer(OLD, catalogue, 64).create(Adapter("one", "base", "r"), ExampleVectors((np.ones(16, np.float32),)))
    with world.qdrant.session() as client:
        content = backup.take_backup(client, world.name)
        catalogue.delete("one")
        world.register(catalogue, OLD, "one", "red shoes")
        for _ in range(3):
            backup.restore_backup(client, world.name, content, replace=True, indexed=world.qdrant.shared)
        assert backup.take_backup(client, world.name).prompts == {}
    assert len([name for name in world.collections() if not name.endswith("-prompts")]) == 2


def test_damaged_backup_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "backup.zip"
    with closing(Qdrant(QdrantFolder(tmp_path / "qdrant"))) as qdrant, qdrant.session() as client:
        world = CatalogueWorld(qdrant)
        world.register(world.open(OLD), OLD, "one", "red", "blue")
        backup.write_backup(backup.take_backup(client, world.name), file)
    whole = file.read_bytes()
    refused: list[str] = []
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x5B]) + whole[place + 1 :])
        try:
            backup.read_backup(file)
        except InvalidArgumentError as error:
            refused.append(str(error))
    assert len(refused) > len(whole) // 4
    assert all("backup.zip" in message for message in refused)


def test_file_that_is_not_backup_is_refused(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("words")
    for name, problem in (("words", "not a complete backup"), ("nothing", "cannot be read")):
        with pytest.raises(InvalidArgumentError, match=problem):
            backup.read_backup(tmp_path / name)
