"""Datasets: rows, image paths, and bad rows that do not affect other rows."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from infra.contract.errors import InvalidArgumentError, NotFoundError
from orchestrator.evaluation.data import datasets
from orchestrator.evaluation.data.datasets import DatasetContent, read_dataset, read_datasets
from orchestrator.evaluation.data.files import expand_pattern
from orchestrator.evaluation.spec import DatasetSpec, PromptProtocol
from tests.support.harness.evaluation_data import row, write_dataset

GOOD = row("e1", "Set a timer.", ["Open App: Clock", "Check status: successful"], ["0.png", "1.png"])


def read(file: Path, root: Path, protocol: PromptProtocol = PromptProtocol.STEP) -> DatasetContent:
    return read_dataset(DatasetSpec("clock", str(file)), protocol=protocol, roots=[root])


def read_lines(folder: Path, lines: list[bytes], protocol: PromptProtocol = PromptProtocol.STEP) -> DatasetContent:
    file = write_dataset(folder, "clock", [GOOD])
    file.write_bytes(b"\n".join(lines))
    return read(file, folder, protocol)


def changed(**fields: Any) -> bytes:
    return json.dumps({name: value for name, value in {**GOOD, **fields}.items() if value is not ...}).encode()


def test_row_becomes_episode(tmp_path: Path) -> None:
    file = write_dataset(tmp_path, "clock", [GOOD])
    content = read(file, tmp_path)
    (episode,) = content.episodes
    assert (episode.dataset, episode.episode_id, episode.line) == ("clock", "e1", 1)
    assert episode.instruction == "Set a timer."
    assert episode.images == (tmp_path / "0.png", tmp_path / "1.png")
    assert episode.actions == ("Open App: Clock", "Check status: successful")
    assert content.bad_rows == ()
    assert content.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_labels_with_newlines_make_one_action_for_each_image(tmp_path: Path) -> None:
    actions = ["Open App: X", 'Click on button with the function of "Profile\nF\nCommunity member"', "Scroll down"]
    file = write_dataset(tmp_path, "clock", [row("e1", "Look.", actions, ["0.png", "1.png", "2.png"])])
    assert read(file, tmp_path).episodes[0].actions == tuple(actions)


def test_byte_order_mark_carriage_returns_and_blank_lines_are_accepted(tmp_path: Path) -> None:
    second = changed(episode_id="e2", query="<image>\n<image>\nZeile\u2028zwei")
    content = read_lines(tmp_path, [b"\xef\xbb\xbf" + changed(), b"", b"  \r", second + b"\r", b""])
    assert [(episode.episode_id, episode.line) for episode in content.episodes] == [("e1", 1), ("e2", 4)]
    assert content.bad_rows == ()


def test_number_is_episode_id(tmp_path: Path) -> None:
    assert read_lines(tmp_path, [changed(episode_id=58)]).episodes[0].episode_id == "58"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{not json", "not JSON: Expecting property name enclosed in double quotes at column 2"),
        (changed()[:-20], "not JSON"),
        (b'{"a": "\xff"}', "not UTF-8: byte 8 of the line"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[1, 2]", "a row must be a JSON object, this is a list"),
        (changed(images=...), "query has 2 <image> for 0 images"),
        (changed(query=...), "query is missing"),
        (changed(response=...), "response is missing"),
        (changed(episode_id="  "), "episode_id is empty"),
        (changed(episode_id=True), "episode_id must be a string, this is true or false"),
        (changed(images=[]), "query has 2 <image> for 0 images"),
        (changed(images="0.png"), "query has 2 <image> for 1 images"),
        (changed(images=7), "images must be a list of paths"),
        (changed(images=["0.png", 7]), "images must be a list of paths"),
        (changed(images=["0.png", ""]), "images must be a list of paths"),
        (changed(query=None), "query is missing"),
        (changed(query=7), "query must be a string, this is a number"),
        (changed(query="<image>\n<image>\n "), "it needs an instruction"),
        (changed(query="<image>\nSet a timer."), "query has 1 <image> for 2 images"),
        (changed(response="\n"), "response is empty"),
        (changed(episode_id="e\ud800"), "episode_id has half of a surrogate pair"),
        (changed(images=["0.png", "\udfff.png"]), "images has half of a surrogate pair"),
        (changed(response="Open App: Clock"), "response has 1 actions for 2 images; the step protocol needs one each"),
        (changed(images=["0.png", "gone.png"]), "image 'gone.png' does not exist"),
        (changed(images=["0.png", "a\0b.png"]), "does not exist"),
        (changed(images=["0.png", "x" * 5000]), "does not exist"),
        (changed(images=["0.png", "."]), "image '.' does not exist"),
        (changed(), "episode_id 'e1' is already used in line 1"),
    ],
)
def test_bad_row_is_reported_and_other_rows_are_read(tmp_path: Path, line: bytes, problem: str) -> None:
    content = read_lines(tmp_path, [changed(), line, changed(episode_id="e3")])
    assert [episode.episode_id for episode in content.episodes] == ["e1", "e3"]
    (bad,) = content.bad_rows
    assert (bad.file, bad.line) == (str(tmp_path / "clock.jsonl"), 2)
    assert problem in bad.problem


def test_sequence_may_have_more_actions_than_images(tmp_path: Path) -> None:
    line = changed(response="Scroll up\nScroll up\nScroll up")
    assert read_lines(tmp_path, [line], PromptProtocol.SEQUENCE).bad_rows == ()
    assert read_lines(tmp_path, [line], PromptProtocol.STEP).episodes == ()


def test_images_are_found_beside_file_in_working_folder_and_below_image_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    places = ["data/beside.png", "data/both.png", "work/here.png", "work/both.png", "media/root.png", "up.png"]
    for place in places:
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).touch()
    images = ["beside.png", "both.png", "here.png", "root.png", "./../up.png", str(tmp_path / "media" / "root.png")]
    file = tmp_path / "data" / "clock.jsonl"
    file.write_text(json.dumps(row("e1", "Look.", ["Scroll up"] * 6, images)))
    dataset = DatasetSpec("clock", "data/clock.jsonl")
    (content,) = read_datasets([dataset], protocol=PromptProtocol.STEP, roots=[tmp_path], image_root="media")
    assert content.bad_rows == ()
    paths = [str(image.relative_to(tmp_path)) for image in content.episodes[0].images]
    assert paths == ["data/beside.png", "data/both.png", "work/here.png", "media/root.png", "up.png", "media/root.png"]


def test_nothing_outside_roots_is_read(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    secret = tmp_path / "secret.png"
    secret.touch()
    (root / "link.png").symlink_to(secret)
    for image in ("./../secret.png", "../secret.png", str(secret), "link.png"):
        file = root / "clock.jsonl"
        file.write_text(json.dumps(row("e1", "Look.", ["Scroll up"], [image])))
        content = read(file, root)
        assert content.episodes == ()
        assert "not below the dataset roots" in content.bad_rows[0].problem


def test_symlink_below_roots_is_followed(tmp_path: Path) -> None:
    file = write_dataset(tmp_path, "clock", [row("e1", "Look.", ["Scroll up"], ["real.png"])])
    (tmp_path / "link.png").symlink_to(tmp_path / "real.png")
    file.write_text(file.read_text().replace("real.png", "link.png"))
    assert read(file, tmp_path).episodes[0].images == (tmp_path / "real.png",)


def test_dataset_missing_or_outside_roots_is_refused_by_name(tmp_path: Path) -> None:
    outside = write_dataset(tmp_path / "outside", "clock", [GOOD])
    root = tmp_path / "root"
    root.mkdir()
    for uri in (str(outside), "gone.jsonl", str(root), "../outside/clock.jsonl"):
        with pytest.raises(NotFoundError, match=r"dataset 'clock': no file .* below the dataset roots"):
            read_dataset(DatasetSpec("clock", uri), protocol=PromptProtocol.STEP, roots=[root])
    with pytest.raises(NotFoundError, match="none are set"):
        read_dataset(DatasetSpec("clock", str(outside)), protocol=PromptProtocol.STEP, roots=[])


def test_image_root_outside_roots_is_refused(tmp_path: Path) -> None:
    file = write_dataset(tmp_path / "root", "clock", [GOOD])
    dataset = DatasetSpec("clock", str(file))
    for image_root in ("/", "gone", str(tmp_path), "a\0b", "x" * 5000):
        with pytest.raises(InvalidArgumentError, match="image_root"):
            read_datasets([dataset], protocol=PromptProtocol.STEP, roots=[tmp_path / "root"], image_root=image_root)


def test_files_with_too_many_bytes_in_total_are_refused(tmp_path: Path) -> None:
    files = [write_dataset(tmp_path, name, [GOOD]) for name in ("clock", "again")]
    specs = [DatasetSpec(file.stem, str(file)) for file in files]
    byte_size = sum(file.stat().st_size for file in files)
    read_datasets(specs, protocol=PromptProtocol.STEP, roots=[tmp_path], max_bytes=byte_size)
    with pytest.raises(InvalidArgumentError, match=r"datasets: .* more than the .* max_dataset_bytes"):
        read_datasets(specs, protocol=PromptProtocol.STEP, roots=[tmp_path], max_bytes=byte_size - 1)


def test_endless_line_is_read_up_to_limit(tmp_path: Path) -> None:
    file = tmp_path / "endless.jsonl"
    with file.open("wb") as hole:
        hole.truncate(1 << 40)
    with pytest.raises(InvalidArgumentError, match="4,097 bytes in total, more than the limit of 4,096"):
        read_datasets(
            [DatasetSpec("endless", str(file))], protocol=PromptProtocol.STEP, roots=[tmp_path], max_bytes=4096
        )


def test_file_with_too_many_bad_rows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "MAX_BAD_ROWS", 3)
    file = tmp_path / "bad.jsonl"
    file.write_text("{}\n" * 4)
    with pytest.raises(InvalidArgumentError, match=r"more than 3 rows cannot be read; .*bad\.jsonl:4: .* is missing"):
        read_datasets([DatasetSpec("bad", str(file))], protocol=PromptProtocol.STEP, roots=[tmp_path])


def test_too_large_image_makes_bad_row_and_is_not_read(tmp_path: Path) -> None:
    file = write_dataset(tmp_path, "clock", [GOOD])
    with (tmp_path / "1.png").open("wb") as hole:
        hole.truncate(1 << 40)
    (bad,) = read(file, tmp_path).bad_rows
    assert bad.problem == "image '1.png' has more than 64 MiB and cannot be sent"


def test_folder_with_test_file_means_that_file(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write_dataset(tmp_path / "gmail", name, [GOOD])
    (dataset,) = expand_pattern(DatasetSpec("", f"{tmp_path}/gmail/"), [tmp_path])
    assert (dataset.name, dataset.uri) == ("gmail", str(tmp_path / "gmail" / "test.jsonl"))
