"""Scores of result files in both formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.evaluation.metrics.legacy import LEGACY_THRESHOLD, legacy_similarity
from orchestrator.evaluation.result_scores import MetricName, score_file
from orchestrator.evaluation.spec import PromptProtocol
from tests.support.harness.evaluation_data import answered, failure, sample, write_records

OPEN, TAP_1, TAP_0, DONE = (
    "Open App: Clock",
    'Click on button with the text "1"',
    'Click on button with the text "0"',
    "Check status: successful",
)


def study_row(truths: list[str], predictions: list[str], episode_id: str = "1") -> dict[str, Any]:
    return {
        "episode_id": episode_id,
        "mode": "step",
        "num_steps": len(truths),
        "ground_truths": truths,
        "predictions": predictions,
    }


def write(file: Path, rows: list[Any]) -> Path:
    file.write_text("\ufeff" + "\r\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return file


ROWS = [
    study_row([OPEN, TAP_1, DONE], [OPEN, TAP_0, DONE], "1"),
    study_row([OPEN, DONE], [OPEN, OPEN], "2"),
    study_row([OPEN, TAP_1, DONE], [OPEN, TAP_1], "3"),
]


def test_result_rows_are_scored_by_both_metrics(tmp_path: Path) -> None:
    file = write(tmp_path / "results.jsonl", ROWS)
    legacy = score_file(file, MetricName.LEGACY, threshold=0.6)
    assert (legacy.step_accuracy, legacy.episode_accuracy) == pytest.approx((6 / 8, 1 / 3))
    assert (legacy.step_count, legacy.episode_count, legacy.metric) == (8, 3, "legacy")
    action = score_file(file)
    assert (action.step_accuracy, action.episode_accuracy) == pytest.approx((5 / 8, 0))
    # OPEN three times, TAP_1 twice, DONE twice; the row with the label, twice of three.
    assert (action.floor, action.episode_floor) == pytest.approx((7 / 8, 2 / 3))
    assert {"step_accuracy", "episode_accuracy", "step_count", "episode_count", "floor"} <= action.to_json().keys()


def test_threshold_decides(tmp_path: Path) -> None:
    file = write(tmp_path / "results.jsonl", [study_row(["Scroll up"], ["Scroll down"])])
    assert score_file(file, MetricName.LEGACY, threshold=0.33).step_accuracy == 1
    assert score_file(file, MetricName.LEGACY, threshold=0.34).step_accuracy == 0


def test_records_and_equivalent_rows_score_alike(tmp_path: Path) -> None:
    rows = [fields for fields in ROWS if len(fields["predictions"]) == len(fields["ground_truths"])]
    records = [
        answered(
            sample(truth, episode=fields["episode_id"], step=step, step_count=len(fields["ground_truths"])), answer
        )
        for fields in rows
        for step, (truth, answer) in enumerate(zip(fields["ground_truths"], fields["predictions"], strict=True))
    ]
    write_records(tmp_path / "records.jsonl", records)
    for metric in MetricName:
        assert score_file(tmp_path / "records.jsonl", metric) == score_file(
            write(tmp_path / "rows.jsonl", rows), metric
        )


def test_failed_records_are_unscored_and_counted(tmp_path: Path) -> None:
    write_records(tmp_path / "r.jsonl", [answered(sample(OPEN, episode="1"), OPEN), failure(sample(OPEN, episode="2"))])
    score = score_file(tmp_path / "r.jsonl")
    assert (score.step_accuracy, score.step_count, score.failed_count) == (1, 1, 1)
    write_records(tmp_path / "f.jsonl", [failure(sample(OPEN))])
    assert score_file(tmp_path / "f.jsonl").step_accuracy is None


def test_records_and_rows_are_scored_by_whole_answers(tmp_path: Path) -> None:
    asked = [sample("two\nlines", episode=str(n), protocol=PromptProtocol.SEQUENCE) for n in range(3)]
    write_records(
        tmp_path / "r.jsonl", [answered(asked[0], "two  lines"), answered(asked[1], "one"), failure(asked[2])]
    )
    score = score_file(tmp_path / "r.jsonl", MetricName.EXACT_MATCH)
    assert (score.step_accuracy, score.step_count, score.failed_count) == (0.5, 2, 1)
    assert (score.episode_accuracy, score.floor, score.metric) == (None, None, "exact_match")
    row = {"episode_id": "1", "ground_truths": ["a b c d", "e"], "predictions": ["a b c d"]}
    (tmp_path / "s.jsonl").write_text(json.dumps(row))
    assert score_file(tmp_path / "s.jsonl", MetricName.BLEU).step_accuracy == pytest.approx(0.5)


def test_file_score_has_parts(tmp_path: Path) -> None:
    row = {"episode_id": "1", "ground_truths": ["Scroll up", "Scroll up"], "predictions": ["Scroll down", "Scroll up"]}
    (tmp_path / "s.jsonl").write_text(json.dumps(row))
    score = score_file(tmp_path / "s.jsonl")
    assert (score.step_accuracy, score.action_type, score.argument) == (0.5, 1, 0.5)
    assert score_file(tmp_path / "s.jsonl", MetricName.ACTION_TYPE).step_accuracy == 1


def test_whole_rows_are_scored_as_one_text(tmp_path: Path) -> None:
    file = write(tmp_path / "results.jsonl", ROWS)
    rows = score_file(file, MetricName.LEGACY_ROW)
    expected = [
        legacy_similarity("\n".join(row["ground_truths"]), "\n".join(row["predictions"])) > LEGACY_THRESHOLD
        for row in ROWS
    ]
    assert expected == [True, False, True]
    assert (rows.step_accuracy, rows.step_count, rows.metric) == (pytest.approx(2 / 3), 3, "legacy_row")
    assert rows.floor is not None
    assert rows.floor >= 2 / 3
