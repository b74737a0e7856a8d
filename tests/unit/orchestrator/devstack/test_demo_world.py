"""The folder of the demo."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.contract.errors import ConfigurationError, UnavailableError
from orchestrator.devstack.demo_world import World, check_work_dir, generate


def test_folder_with_catalogue_of_another_stack_is_refused(tmp_path: Path) -> None:
    (tmp_path / "qdrant").mkdir()
    with pytest.raises(ConfigurationError, match="qdrant"):
        check_work_dir(tmp_path, tmp_path / "world")


def test_folder_of_demo_is_reused(tmp_path: Path) -> None:
    check_work_dir(tmp_path, tmp_path / "world")
    for name in ("qdrant", "world"):
        (tmp_path / name).mkdir()
    (tmp_path / "world" / "world.json").write_text("[]", encoding="utf-8")
    check_work_dir(tmp_path, tmp_path / "world")


def test_world_is_rewritten_only_when_its_code_or_size_changed(tmp_path: Path) -> None:
    folder = tmp_path / "examples" / "pocket_phone"
    folder.mkdir(parents=True)
    (tmp_path / "examples" / "__init__.py").touch()
    (folder / "__init__.py").touch()
    (folder / "__main__.py").write_text("# draws nothing")
    data = tmp_path / "world"
    data.mkdir()
    world = World(folder)
    assert generate(world, data, train=1, test=1)
    assert not generate(world, data, train=1, test=1)
    assert generate(world, data, train=2, test=1)
    (folder / "__main__.py").write_text("# draws nothing, otherwise")
    assert generate(world, data, train=2, test=1)
    (folder / "__main__.py").write_text("raise SystemExit('no ink')")
    with pytest.raises(UnavailableError, match="no ink"):
        generate(world, data, train=2, test=1)
