"""Reading of result files in both formats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.contract.errors import InvalidArgumentError, NotFoundError
from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.evaluation.result_files import read_results
from orchestrator.evaluation.spec import EvaluatedStrategy
from tests.support.harness.evaluation_data import answered, sample, write_records

ROW = {"episode_id": "1", "ground_truths": ["Scroll up"], "predictions": ["Scroll down"]}


def test_strategy_is_chosen_by_label(tmp_path: Path) -> None:
    base = EvaluatedStrategy(AnswerStrategy.BASE)
    first, second = sample("Scroll up"), sample("Scroll up", strategy=base)
    write_records(tmp_path / "r.jsonl", [answered(first, "Scroll up"), answered(second, "Scroll down")])
    results = read_results(tmp_path / "r.jsonl")
    with pytest.raises(InvalidArgumentError, match=r"has several strategies \(mixture, base\); choose one"):
        results.of_strategy()
    assert [record.answer for record in results.of_strategy("base").records] == ["Scroll down"]
    assert [record.answer for record in results.of_strategy("mixture").records] == ["Scroll up"]
    assert list(results.by_strategy()) == ["mixture", "base"]
    with pytest.raises(InvalidArgumentError, match="has no 'oracle'"):
        results.of_strategy("oracle")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", r"results\.jsonl:2: Expecting property name"),
        ("[]", r"results\.jsonl:2: neither a record"),
        ('{"images": []}', r"results\.jsonl:2: neither a record"),
        ('{"sample": {}, "answer": "x"}', r"results\.jsonl:2: \d+ validation errors"),
        (json.dumps(ROW | {"ground_truths": []}), r"results\.jsonl:2: ground_truths is empty"),
        ('{"ground_truths": "Scroll up", "predictions": []}', "ground_truths must be a list of strings"),
        ('{"ground_truths": ["Scroll up"], "predictions": [null]}', "predictions must be a list of strings"),
    ],
)
def test_broken_line_is_reported(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "results.jsonl"
    file.write_text(json.dumps(ROW) + "\n" + text + "\n")
    with pytest.raises(InvalidArgumentError, match=problem):
        read_results(file)


def test_missing_or_empty_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"gone\.jsonl cannot be read"):
        read_results(tmp_path / "gone.jsonl")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(InvalidArgumentError, match=r"empty\.jsonl has no results"):
        read_results(tmp_path / "empty.jsonl")
