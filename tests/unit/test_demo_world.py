"""The demo's folder, and what the demo leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.contract.errors import ConfigurationError
from orchestrator.demo_world import check_work_dir


def test_a_folder_with_a_catalogue_of_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "qdrant").mkdir()
    with pytest.raises(ConfigurationError, match="qdrant"):
        check_work_dir(tmp_path, tmp_path / "world")


def test_the_demos_own_folder_is_taken_again(tmp_path: Path) -> None:
    check_work_dir(tmp_path, tmp_path / "world")
    for name in ("qdrant", "world"):
        (tmp_path / name).mkdir()
    (tmp_path / "world" / "world.json").write_text("[]", encoding="utf-8")
    check_work_dir(tmp_path, tmp_path / "world")
