"""Where records and reports go."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.contract.errors import NotFoundError
from orchestrator.evaluation.storage import absolute_uri, read_text, write_text


def test_folder_is_made_and_the_last_content_stays_alone(tmp_path: Path) -> None:
    folder = str(tmp_path / "evaluations" / "job-1")
    write_text(folder, "summary.md", "first")
    write_text(folder, "summary.md", "zweite, schön")
    assert read_text(folder, "summary.md") == "zweite, schön"
    assert [file.name for file in Path(folder).iterdir()] == ["summary.md"]


def test_any_fsspec_uri_will_do() -> None:
    write_text("memory://evaluations/job-1", "summary.md", "in memory")
    assert read_text("memory://evaluations/job-1", "summary.md") == "in memory"


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"job-1/summary\.md"):
        read_text(str(tmp_path / "job-1"), "summary.md")


def test_local_folder_means_the_same_in_every_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("evaluations") == str(tmp_path / "evaluations")
    assert absolute_uri("s3://bucket/evaluations") == "s3://bucket/evaluations"
