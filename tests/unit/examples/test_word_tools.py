"""The data of the word tools: right answers, splits without overlap, and files that an evaluation reads."""

from __future__ import annotations

import json
import random
from datetime import date
from pathlib import Path

import pytest
import sqlglot
from babel.dates import get_month_names

from examples.word_tools.__main__ import main
from examples.word_tools.dataset import Split, rows
from examples.word_tools.tasks import FAMILIES, TASKS, Row
from orchestrator.evaluation.actions import is_actions
from orchestrator.evaluation.data.datasets import read_dataset
from orchestrator.evaluation.spec import DatasetSpec, PromptProtocol

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
LOCALES = {"german_dates": "de", "danish_dates": "da", "norwegian_dates": "nb", "swedish_dates": "sv"}
DIALECTS = {"sqlserver_queries": "tsql", "oracle_queries": "oracle", "mysql_queries": "mysql"}
BY_HAND = {
    ("german_numbers", "381"): "dreihunderteinundachtzig",
    ("french_numbers", "280"): "deux cent quatre-vingts",
    ("spanish_numbers", "555"): "quinientos cincuenta y cinco",
    ("italian_numbers", "121"): "centoventuno",
}


def drawn(task_id: str, count: int) -> list[Row]:
    rng = random.Random(1)
    return [TASKS[task_id].draw(rng) for _ in range(count)]


def test_tasks_of_at_least_three_families() -> None:
    assert len(TASKS) >= 12
    members = [[task for task in TASKS.values() if task.family == family] for family in FAMILIES]
    assert len(members) >= 3
    assert all(len(tasks) >= 3 for tasks in members)


@pytest.mark.parametrize(("task_id", "key"), BY_HAND)
def test_numbers_are_those_of_the_language(task_id: str, key: str) -> None:
    row = next(row for row in drawn(task_id, 10_000) if row.key == key)
    assert row.response == BY_HAND[task_id, key]
    assert key in row.query


@pytest.mark.parametrize("task_id", LOCALES)
def test_dates_read_back_as_the_day_asked_for(task_id: str) -> None:
    for row in rows(task_id, "train", 50):
        day = date.fromisoformat(row.key)
        assert row.key in row.query
        first, month, year = row.response.split()
        assert (int(first.rstrip(".")), int(year)) == (day.day, day.year)
        assert month == get_month_names("wide", locale=LOCALES[task_id])[day.month]


def test_months_are_those_of_the_language() -> None:
    marches = {task_id: _month(task_id, 3) for task_id in LOCALES}
    assert marches == {
        "german_dates": "März",
        "danish_dates": "marts",
        "norwegian_dates": "mars",
        "swedish_dates": "mars",
    }


def _month(task_id: str, number: int) -> str:
    (month,) = {row.response.split()[1] for row in drawn(task_id, 200) if int(row.key[5:7]) == number}
    return month


@pytest.mark.parametrize("task_id", [task_id for task_id, task in TASKS.items() if task.family == "records"])
def test_records_hold_what_the_sentence_says(task_id: str) -> None:
    for row in rows(task_id, "train", 50):
        record = json.loads(row.response)
        assert "\n" not in row.response
        assert all(key in row.query and str(value) in row.query for key, value in record.items())


@pytest.mark.parametrize("task_id", DIALECTS)
def test_queries_read_back_as_the_query_asked_for(task_id: str) -> None:
    for row in rows(task_id, "train", 50):
        assert row.query.endswith(row.key)
        assert row.response != row.key
        assert sqlglot.transpile(row.response, read=DIALECTS[task_id], write="sqlite") == [row.key]


@pytest.mark.parametrize("task_id", TASKS)
def test_one_input_has_one_answer_that_is_no_action(task_id: str) -> None:
    answers: dict[str, str] = {}
    for row in drawn(task_id, 200):
        assert answers.setdefault(row.key, row.response) == row.response
        assert not is_actions(row.response)


@pytest.mark.parametrize("task_id", TASKS)
def test_smaller_draw_is_start_of_larger_and_seed_changes_it(task_id: str) -> None:
    assert rows(task_id, "test", 20)[:5] == rows(task_id, "test", 5)
    assert rows(task_id, "test", 5, seed=12) != rows(task_id, "test", 5)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_input_is_in_two_splits_of_a_family(family: str) -> None:
    ids = [task_id for task_id, task in TASKS.items() if task.family == family]
    keys = {split: {row.key for task_id in ids for row in rows(task_id, split, 30)} for split in SPLITS}
    assert all(keys[one].isdisjoint(keys[other]) for one in SPLITS for other in SPLITS if one != other)


def test_task_without_enough_inputs_gives_what_it_has() -> None:
    everything = rows("german_numbers", "test", 400)
    assert 130 < len(everything) < 230


def test_generated_files_are_same_bytes_and_read_by_evaluation(tmp_path: Path) -> None:
    for name in ("one", "other"):
        assert main(["generate", "--output", str(tmp_path / name), "--train", "3", "--test", "2"]) == 0
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.json*"))
    assert len(files) == 2 * len(TASKS) + 1
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes() for file in files)
    for entry in json.loads((tmp_path / "one" / "world.json").read_text(encoding="utf-8")):
        spec = DatasetSpec(entry["adapter_id"], str(tmp_path / "one" / entry["test"]))
        content = read_dataset(spec, protocol=PromptProtocol.SEQUENCE, roots=[tmp_path])
        assert (len(content.episodes), list(content.bad_rows)) == (2, [])
