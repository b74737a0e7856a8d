"""The commands `loraretriever retrieval backup|restore|rollback`."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest

from orchestrator.cli.main import run
from retrieval_service.catalogue.qdrant import Qdrant, QdrantFolder
from tests.support.harness.catalogue_world import OLD, CatalogueWorld


def test_commands_back_up_restore_and_roll_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--qdrant-path", str(tmp_path / "qdrant")]
    with closing(Qdrant(QdrantFolder(tmp_path / "qdrant"))) as qdrant:
        world = CatalogueWorld(qdrant, "adapters")
        world.register(world.open(OLD), OLD, "one", "red shoes")
        assert run(["retrieval", "backup", str(tmp_path / "b.zip"), *place]) == 2
        assert "in use by another process" in capsys.readouterr().err
    assert run(["retrieval", "backup", str(tmp_path / "b.zip"), *place]) == 0
    assert "wrote 1 adapters" in capsys.readouterr().out
    assert run(["retrieval", "restore", str(tmp_path / "b.zip"), *place]) == 1
    assert "--replace" in capsys.readouterr().err
    assert run(["retrieval", "restore", str(tmp_path / "b.zip"), *place, "--replace", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["adapters"] == 1
    with closing(Qdrant(QdrantFolder(tmp_path / "qdrant"))) as qdrant:
        world = CatalogueWorld(qdrant, "adapters")
        world.register(world.open(OLD), OLD, "two", "mail")
    assert run(["retrieval", "rollback", *place]) == 1
    assert "these adapters were registered, changed or removed since: two" in capsys.readouterr().err
    assert run(["retrieval", "rollback", *place, "--yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["undone"] == ["two"]
    assert run(["retrieval", "backup", str(tmp_path / "c.zip"), *place, "--collection", "other"]) == 1
    assert "there is no catalogue 'other'" in capsys.readouterr().err
