"""Patterns: which files they match, that nothing outside the roots is examined, and that the search ends."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from infra.contract.errors import InvalidArgumentError, NotFoundError
from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.cli.dataset_args import dataset_specs
from orchestrator.evaluation.data import files as dataset_files
from orchestrator.evaluation.data.files import expand_pattern, resolve_datasets
from orchestrator.evaluation.data.patterns import PatternSearch
from orchestrator.evaluation.spec import DatasetSpec, EvaluatedStrategy, EvaluationSpec

FILES = (
    "apps/clock.jsonl", "apps/gmail.jsonl", "apps/notes.txt", "apps/.hidden.jsonl",
    "apps/maps/test.jsonl", "apps/maps/old/test.jsonl", "apps/.cache/test.jsonl",
)  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tree(tmp_path / "root")


def tree(folder: Path) -> Path:
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def names(files: list[Path], root: Path) -> list[str]:
    return [str(file.relative_to(root)) for file in files]


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that were listed."""
    folders: list[str] = []
    scandir = os.scandir

    def spy(path: Any = ".") -> Any:
        folders.append(str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", spy)
    return folders


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("apps/*.jsonl", ["apps/clock.jsonl", "apps/gmail.jsonl"]),
        ("apps/[cg]*.jsonl", ["apps/clock.jsonl", "apps/gmail.jsonl"]),
        ("./apps/clo?k.jsonl", ["apps/clock.jsonl"]),
        ("*/*.jsonl", ["apps/clock.jsonl", "apps/gmail.jsonl"]),
        ("apps/*/test.jsonl", ["apps/maps/test.jsonl"]),
        ("apps/*", ["apps/clock.jsonl", "apps/gmail.jsonl"]),
        ("apps/.*.jsonl", ["apps/.hidden.jsonl"]),
        ("**/test.jsonl", ["apps/maps/old/test.jsonl", "apps/maps/test.jsonl"]),
        ("apps/**/test.jsonl", ["apps/maps/old/test.jsonl", "apps/maps/test.jsonl"]),
        ("**/**/c*.jsonl", ["apps/clock.jsonl"]),
        ("apps/maps/**", ["apps/maps/old/test.jsonl", "apps/maps/test.jsonl"]),
        ("apps/**/old/**/*.jsonl", ["apps/maps/old/test.jsonl"]),
        ("apps/*.txt", []),
        ("gone/*.jsonl", []),
        ("apps/clock.jsonl/*.jsonl", []),
        ("[\0]*.jsonl", []),
        ("*" * 5000, []),
        ("x" * 300 + "/*.jsonl", []),
    ],
)
def test_pattern_matches_expected_files(root: Path, pattern: str, expected: list[str]) -> None:
    assert names(PatternSearch([root]).files(pattern), root) == expected
    assert names(PatternSearch([Path("/")]).files(str(root / pattern)), root) == expected


def test_relative_pattern_is_tried_in_working_folder_then_each_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tree(tmp_path / "first"), tree(tmp_path / "second")
    search = PatternSearch([tmp_path / "none", second])
    assert search.files("apps/c*.jsonl") == [second / "apps/clock.jsonl"]
    monkeypatch.chdir(first)
    assert PatternSearch([tmp_path]).files("apps/c*.jsonl") == [first / "apps/clock.jsonl"]
    assert PatternSearch([second]).files("apps/c*.jsonl") == [second / "apps/clock.jsonl"]
    assert PatternSearch([Path("apps")]).files("apps/c*.jsonl") == [first / "apps/clock.jsonl"]
    monkeypatch.chdir(first / "apps" / "maps")
    assert PatternSearch([tmp_path]).files("../c*.jsonl") == [first / "apps/clock.jsonl"]


@pytest.mark.parametrize(
    "pattern", ["/**/*.jsonl", "{outside}/**/*.jsonl", "../**/*.jsonl", "link/*.jsonl", "l*/*.jsonl"]
)
def test_folders_outside_roots_are_not_listed(
    tmp_path: Path, root: Path, pattern: str, looked_at: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = tree(tmp_path / "outside")
    (root / "link").symlink_to(outside)
    monkeypatch.chdir(tmp_path)
    assert PatternSearch([root]).files(pattern.format(outside=outside)) == []
    assert [folder for folder in looked_at if not Path(folder).is_relative_to(root)] == []


def test_symlink_out_of_roots_is_not_matched(tmp_path: Path, root: Path) -> None:
    (tmp_path / "secret.jsonl").touch()
    (root / "apps/link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    (root / "apps/same.jsonl").symlink_to(root / "apps/clock.jsonl")
    (root / "apps/loop.jsonl").symlink_to(root / "apps/loop.jsonl")
    assert names(PatternSearch([root]).files("apps/*.jsonl"), root) == ["apps/clock.jsonl", "apps/gmail.jsonl"]


def test_folder_symlinks_are_followed_if_matched_and_never_in_cycles(root: Path) -> None:
    (root / "more").symlink_to(root / "apps")
    (root / "apps/maps/up").symlink_to(root)
    assert names(PatternSearch([root]).files("more/c*.jsonl"), root) == ["apps/clock.jsonl"]
    assert names(PatternSearch([root]).files("*/c*.jsonl"), root) == ["apps/clock.jsonl"]
    search = PatternSearch([root], max_entries=100)
    assert names(search.files("**/test.jsonl"), root) == ["apps/maps/old/test.jsonl", "apps/maps/test.jsonl"]


def test_parent_folder_after_wildcard_is_refused(root: Path) -> None:
    for pattern in ("apps/*/../*.jsonl", "**/../../*.jsonl"):
        with pytest.raises(InvalidArgumentError, match="after a wildcard"):
            PatternSearch([root]).files(pattern)


def test_search_ends_at_entry_limit(root: Path) -> None:
    search = PatternSearch([root], max_entries=20)
    for _ in range(3):
        search.files("apps/*.jsonl")
    with pytest.raises(InvalidArgumentError, match=r"more than 20 files and folders .* start the pattern with"):
        search.files("apps/*.jsonl")
    for number in range(30):
        (root / f"{number}.png").touch()
    with pytest.raises(InvalidArgumentError, match="more than 20 files and folders"):
        PatternSearch([root], max_entries=20).files("**/*.jsonl")


def test_more_matches_than_limit_are_refused(root: Path) -> None:
    assert len(PatternSearch([root], max_files=2).files("apps/*.jsonl")) == 2
    with pytest.raises(InvalidArgumentError, match="more than 1 files match"):
        PatternSearch([root], max_files=1).files("apps/*.jsonl")


def test_patterns_of_job_share_limit_and_exceeding_one_is_reported(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_files, "PatternSearch", partial(PatternSearch, max_files=3))
    patterns = tuple(DatasetSpec(name, "apps/*.jsonl") for name in ("first", "second"))
    spec = EvaluationSpec(patterns, (EvaluatedStrategy(AnswerStrategy.BASE),))
    with pytest.raises(InvalidArgumentError, match=r"datasets\[1\].uri: more than 3 files match"):
        resolve_datasets(spec, [root])


def test_files_too_large_in_total_are_refused_before_hashing(root: Path) -> None:
    with (root / "apps/clock.jsonl").open("wb") as hole:
        hole.truncate(1 << 40)
    spec = EvaluationSpec((DatasetSpec("", "apps/*.jsonl"),), (EvaluatedStrategy(AnswerStrategy.BASE),))
    with pytest.raises(InvalidArgumentError, match=r"datasets: .* 1,099,511,627,776 bytes in total"):
        resolve_datasets(spec, [root])


def test_job_with_too_long_spec_is_refused(root: Path) -> None:
    labels = tuple((f"com.example.app{number}", f"app_lora_{number}") for number in range(30_000))
    spec = EvaluationSpec(
        (DatasetSpec("", "apps/*.jsonl", adapter_field="app", adapter_of=labels),),
        (EvaluatedStrategy(AnswerStrategy.BASE),),
    )
    assert (
        len(
            resolve_datasets(replace(spec, datasets=(replace(spec.datasets[0], uri="apps/c*.jsonl"),)), [root]).datasets
        )
        == 1
    )
    spec = replace(spec, datasets=(*spec.datasets, replace(spec.datasets[0], name="again")))
    with pytest.raises(InvalidArgumentError, match=r"^datasets: .* description has .* bytes, more than 4,194,304"):
        resolve_datasets(spec, [root])


def test_folder_means_its_files_or_test_split_of_each_subfolder(root: Path) -> None:
    assert [dataset.name for dataset in expand_pattern(DatasetSpec("", "apps/"), [root])] == ["clock", "gmail"]
    (root / "apps/clock.jsonl").unlink()
    (root / "apps/gmail.jsonl").unlink()
    assert [dataset.name for dataset in expand_pattern(DatasetSpec("study", "apps/"), [root])] == ["study.maps"]
    with pytest.raises(NotFoundError, match="no JSONL file matches"):
        expand_pattern(DatasetSpec("", "/**/*.jsonl"), [root])


def test_command_line_expands_files_of_this_machine(
    tmp_path: Path, root: Path, looked_at: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    for given in ("apps", "apps/", "apps/*.jsonl", str(root / "apps/*.jsonl"), "../root/apps/", "**/[cg]*.jsonl"):
        datasets = dataset_specs([given])
        assert [(dataset.name, dataset.uri) for dataset in datasets] == [
            (name, str(root / f"apps/{name}.jsonl")) for name in ("clock", "gmail")
        ], given
    assert [dataset.uri for dataset in dataset_specs(["gone/*.jsonl"])] == ["gone/*.jsonl"]
    assert dataset_specs(["**/gone.jsonl"])[0].uri == "**/gone.jsonl"
    assert [folder for folder in looked_at if not Path(folder).is_relative_to(root)] == []
