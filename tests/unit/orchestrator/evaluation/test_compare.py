"""Comparison of two sets of results."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from infra.contract.errors import InvalidArgumentError
from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.evaluation.compare import compare
from orchestrator.evaluation.result_files import Results, read_results
from orchestrator.evaluation.result_scores import MetricName
from orchestrator.evaluation.spec import EvaluatedStrategy, PromptProtocol
from tests.support.harness.evaluation_data import answered, sample, write_records
from tests.support.harness.report_records import strategy_records

RIGHT, WRONG = "Scroll up", "Scroll down"
SELECTION = EvaluatedStrategy(AnswerStrategy.SELECTION)
MIXTURE = EvaluatedStrategy(AnswerStrategy.MIXTURE)


def test_two_files_are_compared_on_their_common_questions(tmp_path: Path) -> None:
    write_records(tmp_path / "a.jsonl", [*strategy_records(SELECTION, [True, False, False, False])])
    write_records(
        tmp_path / "b.jsonl",
        [*strategy_records(MIXTURE, [True, True, False]), *strategy_records(SELECTION, [True] * 4)],
    )
    first, second = (read_results(tmp_path / f"{name}.jsonl") for name in "ab")
    (comparison,) = compare(first, second, strategy="selection", against="mixture")
    assert (comparison.first_score.value, comparison.second_score.value) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert (comparison.difference.value, comparison.difference.count) == (pytest.approx(1 / 3), 3)
    (common,) = compare(first, second)
    assert (common.first, common.second, common.difference.value) == ("selection", "selection", 0.75)
    assert compare(first, second, MetricName.EXACT_MATCH)[0].difference.value == 0.75
    with pytest.raises(InvalidArgumentError, match="has no 'oracle'"):
        compare(first, second, strategy="oracle")


def test_files_without_common_question_or_strategy_are_refused(tmp_path: Path) -> None:
    write_records(tmp_path / "a.jsonl", strategy_records(SELECTION, [True]))
    write_records(tmp_path / "b.jsonl", [answered(sample(RIGHT, dataset="other", strategy=SELECTION), RIGHT)])
    write_records(
        tmp_path / "c.jsonl",
        [*strategy_records(MIXTURE, [True]), *strategy_records(EvaluatedStrategy(AnswerStrategy.BASE), [True])],
    )
    first, second, third = (read_results(tmp_path / f"{name}.jsonl") for name in "abc")
    with pytest.raises(InvalidArgumentError, match="no scored question in common"):
        compare(first, second)
    with pytest.raises(InvalidArgumentError, match="choose one of each with --strategy and --against"):
        compare(first, third)


def rows_file(file: Path, *rows: tuple[str | None, list[str]]) -> Results:
    """Write rows of the study, each answered right; an episode id of None is left out."""
    written = [
        {"ground_truths": truths, "predictions": truths, **({} if name is None else {"episode_id": name})}
        for name, truths in rows
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in written))
    return read_results(file)


@pytest.mark.parametrize("metric", [MetricName.ACTION, MetricName.EXACT_MATCH])
def test_questions_with_different_truths_never_pair(tmp_path: Path, metric: MetricName) -> None:
    first = rows_file(tmp_path / "a.jsonl", ("1", ["Scroll up", "Wait for response"]), ("2", ["Scroll up"]))
    second = rows_file(tmp_path / "b.jsonl", ("1", ["Scroll up", "Scroll left"]), ("2", ["Scroll up"]))
    (comparison,) = compare(first, second, metric)
    assert (comparison.difference.count, comparison.left_out) == (1, 2)
    assert "whose content differs" in comparison.notes[0]
    assert comparison.notes[1] == "Scores cover only the questions that both have a score for."
    (same,) = compare(first, first, metric)
    assert (same.difference.count, same.left_out, same.notes) == (3, 0, [])
    other = rows_file(tmp_path / "c.jsonl", ("1", ["Scroll down"]), ("2", ["Scroll left"]))
    with pytest.raises(InvalidArgumentError, match="no scored question in common"):
        compare(first, other, metric)


def test_rows_without_id_pair_by_order_and_truths(tmp_path: Path) -> None:
    start, end = "Open App: Clock", "Check status: successful"
    up, down, left = ([start, middle, end] for middle in ("Scroll up", "Scroll down", "Scroll left"))
    first = rows_file(tmp_path / "a.jsonl", (None, up), (None, down), (None, left))
    shifted = rows_file(tmp_path / "b.jsonl", (None, up), (None, left))
    (comparison,) = compare(first, shifted)
    assert (comparison.difference.count, comparison.left_out) == (3, 3)


def test_records_of_different_data_with_same_name_do_not_pair(tmp_path: Path) -> None:
    first = [sample(RIGHT, episode="1", cluster="1-aa"), sample(RIGHT, episode="2", cluster="2-bb")]
    second = [first[0], replace(first[1], cluster="2-cc")]
    for name, samples in (("a", first), ("b", second)):
        write_records(tmp_path / f"{name}.jsonl", [answered(asked, RIGHT) for asked in samples])
    (comparison,) = compare(read_results(tmp_path / "a.jsonl"), read_results(tmp_path / "b.jsonl"))
    assert (comparison.difference.count, comparison.left_out) == (1, 1)


def test_questions_of_one_side_are_counted(tmp_path: Path) -> None:
    first = rows_file(tmp_path / "a.jsonl", ("1", ["Scroll up"] * 3), ("2", ["Scroll up"]), ("3", ["Scroll up"]))
    second = rows_file(tmp_path / "b.jsonl", ("2", ["Scroll up"]), ("3", ["Scroll down"]), ("4", ["Scroll up"] * 2))
    (comparison,) = compare(first, second)
    assert (comparison.difference.count, comparison.left_out) == (1, 1)
    assert (comparison.only_first, comparison.only_second) == (3, 2)


def test_modes_of_study_rows_are_protocols(tmp_path: Path) -> None:
    results = []
    for mode in ("step", "episode", None):
        row = {"ground_truths": [RIGHT], "predictions": [RIGHT], "episode_id": "1", "mode": mode}
        (tmp_path / f"{mode}.jsonl").write_text(json.dumps(row) + "\n")
        results.append(read_results(tmp_path / f"{mode}.jsonl"))
    step, episode, unknown = results
    assert [result.protocols for result in results] == [("step",), ("episode",), ()]
    assert compare(step, episode)[0].notes == [
        "Answered under different protocols, so with different prompts: step, episode."
    ]
    assert compare(step, step)[0].notes == compare(step, unknown)[0].notes == []


def test_comparison_of_different_protocols_has_note(tmp_path: Path) -> None:
    for name, protocol in (("a", PromptProtocol.STEP), ("b", PromptProtocol.SEQUENCE)):
        write_records(tmp_path / f"{name}.jsonl", [answered(sample(RIGHT, protocol=protocol), RIGHT)])
    (comparison,) = compare(read_results(tmp_path / "a.jsonl"), read_results(tmp_path / "b.jsonl"))
    assert comparison.protocols == ("step", "sequence")
    assert comparison.notes == ["Answered under different protocols, so with different prompts: step, sequence."]
