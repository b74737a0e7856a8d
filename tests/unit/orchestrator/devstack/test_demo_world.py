"""The folder of the demo."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from infra.contract.errors import ConfigurationError, UnavailableError
from orchestrator.devstack.demo_world import (
    PHONE,
    WORDS,
    World,
    WorldKind,
    check_work_dir,
    fetch,
    find_world,
    generate,
    world_kind,
)


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


def fake_world(tmp_path: Path, kind: WorldKind, code: str) -> World:
    """Return a world whose package has no code but this."""
    folder = tmp_path / "examples" / kind.package
    folder.mkdir(parents=True)
    (tmp_path / "examples" / "__init__.py").touch()
    (folder / "__init__.py").touch()
    (folder / "__main__.py").write_text(code)
    return World(kind, folder, tmp_path / "models")


def test_world_is_rewritten_only_when_its_code_or_size_changed(tmp_path: Path) -> None:
    data = tmp_path / "world"
    data.mkdir()
    world = fake_world(tmp_path, PHONE, "# draws nothing")
    assert generate(world, data)
    assert not generate(world, data)
    assert generate(replace(world, kind=replace(PHONE, rows=2)), data)
    (world.folder / "__main__.py").write_text("# draws nothing, otherwise")
    assert generate(world, data)
    (world.folder / "__main__.py").write_text("raise SystemExit('no ink')")
    with pytest.raises(UnavailableError, match="no ink"):
        generate(world, data)


def test_models_are_fetched_by_command_of_world_that_has_none(tmp_path: Path) -> None:
    lines: list[str] = []
    world = fake_world(tmp_path, WORDS, "import sys; print(*sys.argv[1:])")
    fetch(world, lines.append)
    assert lines == [f"fetch --output {tmp_path / 'models'}"]
    fetch(replace(world, kind=PHONE), lines.append)
    assert len(lines) == 1


def test_failed_fetch_shows_error_of_command(tmp_path: Path) -> None:
    world = fake_world(tmp_path, WORDS, "raise SystemExit('error: no network')")
    with pytest.raises(UnavailableError, match="could not be fetched: no network"):
        fetch(world, lambda _: None)


@pytest.mark.parametrize("name", ["word-tools", "word_tools", "examples/word_tools", "/far/away/word_tools/"])
def test_world_is_named_or_given_by_its_folder(name: str) -> None:
    assert world_kind(name) is WORDS


def test_unknown_world_is_refused_with_known_names() -> None:
    with pytest.raises(ConfigurationError, match="pocket-phone or word-tools"):
        world_kind("moon")


def test_models_of_word_tools_are_below_work_dir(tmp_path: Path) -> None:
    world = find_world(WORDS, work_dir=tmp_path)
    assert world.base == tmp_path / "models" / "SmolLM2-135M-Instruct"
    assert world.base.name == WORDS.model_name
    assert world.adapters.is_dir()


def test_incomplete_world_is_refused_with_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"__main__\.py does not exist.*try another"):
        find_world(WORDS, folder=tmp_path, remedy="try another")
