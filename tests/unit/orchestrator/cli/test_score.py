"""`evaluate score` and `compare` on files: no server, one JSON object, exit codes for continuous integration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.cli.main import run
from orchestrator.cli.settings import environment
from orchestrator.cli.tables import distinct_names
from orchestrator.evaluation.actions import Action, ActionType, Point, render_action
from orchestrator.evaluation.spec import EvaluatedStrategy
from tests.support.harness.evaluation_data import answered, failure, sample, write_records
from tests.support.servers.chat_endpoint import fake_chat

ROWS = [
    {"episode_id": "1", "ground_truths": ["Scroll up", "Wait for response"], "predictions": ["Scroll up", "Scroll up"]},
    {"episode_id": "2", "ground_truths": ["Scroll up"], "predictions": ["Scroll up"]},
]


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.fixture
def results(tmp_path: Path) -> str:
    return write(tmp_path / "results.jsonl", ROWS)


def test_score_of_one_file_is_one_object(results: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", "score", results, "--metric", "legacy", "--threshold", "0.6", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["step_accuracy"], found["episode_accuracy"]) == (pytest.approx(2 / 3), 0.5)
    assert (found["step_count"], found["episode_count"], found["floor"]) == (3, 2, 1.0)
    assert run(["evaluate", "score", results, results, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2


TEXT_ROWS = [
    {"episode_id": str(number), "ground_truths": [f"The answer is {number}."], "predictions": ["The answer is 1."]}
    for number in range(4)
]


def test_answers_without_actions_are_scored_whole_unless_metric_is_named(
    results: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = write(tmp_path / "texts.jsonl", TEXT_ROWS)
    assert run(["evaluate", "score", texts, results, "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["metric"], first["step_accuracy"], first["step_count"]) == ("exact_match", 0.25, 4)
    assert second["metric"] == "action"
    assert run(["evaluate", "compare", texts, texts, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["metric"] == "exact_match"
    assert run(["evaluate", "score", texts, "--metric", "action", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metric"] == "action"
    assert run(["evaluate", "run", texts, "--evaluate-only", "--fail-under", "0.3", "--json"]) == 1
    output = capsys.readouterr()
    assert [score["metric"] for score in json.loads(output.out)] == ["exact_match", "legacy", "legacy_row"]
    assert f"below 0.3: {texts} 0.2500" in output.err
    assert run(["evaluate", "score", texts, "--point-tolerance", "5"]) == 2
    assert "--point-tolerance: has no effect on --metric exact_match" in capsys.readouterr().err


def test_table_of_whole_answers_has_no_steps_floors_and_episodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", "score", write(tmp_path / "texts.jsonl", TEXT_ROWS)]) == 0
    shown = capsys.readouterr().out
    assert "mean" in shown
    assert "answers" in shown
    assert not any(word in shown for word in ("steps", "floor", "episodes", "unscored"))


def test_every_strategy_of_job_has_its_own_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = EvaluatedStrategy(AnswerStrategy.BASE)
    asked = [sample("Scroll up"), sample("Scroll up", strategy=base)]
    write_records(tmp_path / "records.jsonl", map(answered, asked, ["Scroll up", "Scroll down"]))
    assert run(["evaluate", "score", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(score["strategy"], score["step_accuracy"]) for score in found] == [("mixture", 1), ("base", 0)]
    assert run(["evaluate", "score", str(tmp_path), "--strategy", "base", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step_accuracy"] == 0
    assert run(["evaluate", "score", str(tmp_path), "--fail-under", "0.5"]) == 1
    output = capsys.readouterr()
    assert "mixture" in output.out
    assert f"below 0.5: {tmp_path}: base 0.0000" in output.err
    assert run(["evaluate", "run", str(tmp_path), "--evaluate-only", "--json"]) == 0
    assert {score["strategy"] for score in json.loads(capsys.readouterr().out)} == {"mixture", "base"}


def test_folder_of_result_files_is_scored_file_by_file(
    results: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = write(tmp_path / "more.jsonl", ROWS[:1])
    assert run(["evaluate", "score", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(score["file"], score["step_count"]) for score in found] == [(more, 2), (results, 3)]
    (tmp_path / "empty").mkdir()
    assert run(["evaluate", "score", str(tmp_path / "empty")]) == 1
    assert "there is no records.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(("fail_under", "status"), [("0.6", 0), ("0.7", 1)])
def test_score_below_gate_fails_command_after_it_is_printed(
    results: str, fail_under: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", "score", results, "--fail-under", fail_under, "--json"]) == status
    output = capsys.readouterr()
    assert json.loads(output.out)["metric"] == "action"
    assert ("below 0.7" in output.err) == (status == 1)


def test_failed_records_count_against_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [sample("Scroll up", episode=str(number)) for number in range(9)]
    write_records(
        tmp_path / "r.jsonl", [*(answered(question, "Scroll up") for question in asked[:4]), *map(failure, asked[4:])]
    )
    for words, status in (
        (["--fail-under", "0.9"], 1),
        (["--fail-under", "0.9", "--max-failed", "0.6"], 0),
        (["--max-failed", "0.5"], 1),
        ([], 0),
    ):
        assert run(["evaluate", "score", str(tmp_path / "r.jsonl"), *words]) == status
    assert "r.jsonl: 5 of 9 samples are unscored" in capsys.readouterr().err


def test_result_files_are_gated_and_may_be_folder_pattern_or_named(
    results: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "more.jsonl", ROWS[:1])
    (tmp_path / "job").mkdir()
    write_records(tmp_path / "job" / "records.jsonl", [answered(sample("Scroll up"), "Scroll up")])
    (tmp_path / "job" / "judge.jsonl").write_text('{"key": "a", "grade": 1}\n')

    def scored(source: str, *words: str) -> dict[str, float]:
        assert run(["evaluate", "run", source, "--evaluate-only", "--json", *words]) == 0
        found = json.loads(capsys.readouterr().out)
        return {score["file"]: score["step_accuracy"] for score in found if score["metric"] == "action"}

    both = {str(tmp_path / "more.jsonl"): 0.5, results: pytest.approx(2 / 3)}
    assert scored(str(tmp_path)) == scored(f"{tmp_path}/*.jsonl") == both
    assert scored(str(tmp_path / "job")) == {str(tmp_path / "job"): 1}
    assert scored(f"mine={results}") == {"mine": pytest.approx(2 / 3)}
    assert scored(results, "--fail-under", "0.6") == {results: pytest.approx(2 / 3)}
    assert run(["evaluate", "run", str(tmp_path), "--evaluate-only", "--fail-under", "0.6"]) == 1
    assert "below 0.6: " + str(tmp_path / "more.jsonl") in capsys.readouterr().err
    assert run(["evaluate", "run", results, "--evaluate-only", "--fail-under", "0.6", "--metric", "exact_match"]) == 0
    assert run(["evaluate", "run", f"{tmp_path}/none/*.jsonl", "--evaluate-only"]) == 1
    assert "no result file matches" in capsys.readouterr().err


def test_point_tolerance_is_an_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, near = (
        render_action(Action(ActionType.CLICK, Point(10, 10))),
        render_action(Action(ActionType.CLICK, Point(10, 40))),
    )
    file = write(tmp_path / "r.jsonl", [{"episode_id": "1", "ground_truths": [truth], "predictions": [near]}])
    for words, accuracy in (([], 1), (["--point-tolerance", "20"], 0), (["--point-tolerance", "30"], 1)):
        assert run(["evaluate", "score", file, *words, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["step_accuracy"] == accuracy
        assert run(["evaluate", "compare", file, file, *words, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)[0]["first_score"]["value"] == accuracy


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["score", "--threshold", "0.5"], "threshold: has no effect on --metric action"),
        (["score", "--metric", "bleu", "--threshold", "0.5"], "threshold: has no effect on --metric bleu"),
        (["score", "--metric", "legacy", "--threshold", "5"], "threshold: must be a similarity"),
        (
            ["score", "--metric", "legacy", "--point-tolerance", "5"],
            "--point-tolerance: has no effect on --metric",
        ),
        (["compare", "--threshold", "0.5"], "threshold: has no effect on --metric action"),
        (["score", "--judge-model", "m"], "have no effect without --judge"),
        (["score", "--judge-rate", "5"], "have no effect without --judge"),
        (["score", "--judge-prompt", "p.txt"], "have no effect without --judge"),
        (["score", "--judge", "http://h/v1", "--judge-model", "m", "--metric", "bleu"], "leave --metric and its opt"),
    ],
)
def test_options_that_would_be_ignored_are_refused(
    results: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = [results, results] if words[0] == "compare" else [results]
    assert run(["evaluate", words[0], *sources, *words[1:]]) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert output.out == ""


def test_compare_prints_paired_difference(results: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    better = write(tmp_path / "better.jsonl", [{**ROWS[0], "predictions": ROWS[0]["ground_truths"]}, ROWS[1]])
    assert run(["evaluate", "compare", results, better, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["difference"]["value"] == pytest.approx(1 / 3)
    assert found["difference"]["low"] < 1 / 3 < found["difference"]["high"]
    assert run(["evaluate", "compare", results, better]) == 0
    assert "+33.3 [" in capsys.readouterr().out


def test_tables_leave_out_shared_folders_of_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / ("long" * 40)
    files = []
    for name in ("first", "second"):
        (folder / name).mkdir(parents=True)
        files.append(write(folder / name / "records.jsonl", ROWS))
    for command in ("score", "compare"):
        assert run(["evaluate", command, *files]) == 0
        shown = capsys.readouterr().out
        assert "first/records.jsonl" in shown
        assert "second/records.jsonl" in shown
    assert distinct_names(["/a/b/c/x", "/a/b/d/x"]) == ["c/x", "d/x"]
    assert distinct_names(["/a/b", "/a/b/"]) == ["b", "b"]
    assert distinct_names(["20260101-1", "/a/b"]) == ["20260101-1", "/a/b"]
    assert distinct_names(["/a/b"]) == ["/a/b"]


def test_compare_counts_left_out_questions(results: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write(tmp_path / "other.jsonl", [ROWS[0], {**ROWS[1], "ground_truths": ["Scroll down"]}])
    assert run(["evaluate", "compare", results, other, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["left_out"] == 1
    assert run(["evaluate", "compare", results, other]) == 0
    output = capsys.readouterr()
    assert "left out" in output.out
    assert "Left out: questions with the same name" in output.err


def test_compare_counts_questions_of_one_side(results: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = write(tmp_path / "few.jsonl", ROWS[1:])
    assert run(["evaluate", "compare", results, few, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["only_first"], found["only_second"], found["left_out"]) == (2, 0, 0)
    assert run(["evaluate", "compare", results, few]) == 0
    output = capsys.readouterr()
    assert "only in" in output.out
    assert "Scores cover only the questions that both have a score for" in output.err


def test_table_of_scores_has_parts_of_actions(results: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", "score", results]) == 0
    shown = capsys.readouterr().out
    assert "type right" in shown
    assert "argument right" in shown
    assert "± 0.0%" not in shown
    assert run(["evaluate", "score", results, "--metric", "legacy"]) == 0
    assert "argument right" not in capsys.readouterr().out


def test_judge_grades_once_with_key_of_environment(
    results: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LORARETRIEVER_CLIENT_JUDGE_KEY", "secret")
    environment.cache_clear()
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("{truth} or {answer}")
    with fake_chat(lambda question: "SCORE: 1" if question == "Scroll up or Scroll up" else "SCORE: 0") as chat:
        words = ["--judge", chat.base_url, "--judge-model", "grader", "--judge-prompt", str(prompt)]
        words += ["--judge-cache", str(tmp_path / "cache"), "--judge-concurrency", "1", "--json"]
        assert run(["evaluate", "score", results, *words]) == 0
        first = json.loads(capsys.readouterr().out)
        assert run(["evaluate", "score", results, *words]) == 0
        again = json.loads(capsys.readouterr().out)
    environment.cache_clear()
    assert (first["step_accuracy"], first["metric"]) == (pytest.approx(2 / 3), "judge grader")
    assert (first["judge_calls"], first["judge_cached"], first["judge_prompt_tokens"]) == (2, 1, 20)
    assert (again["judge_calls"], again["judge_cached"], again["step_accuracy"]) == (0, 3, first["step_accuracy"])
    assert chat.keys == {"Bearer secret"}


def test_judge_without_model_or_prompt_is_refused(
    results: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", "score", results, "--judge", "http://127.0.0.1:9/v1"]) == 2
    assert "--judge-model" in capsys.readouterr().err
    words = ["--judge", "http://127.0.0.1:9/v1", "--judge-model", "m", "--judge-prompt", str(tmp_path / "none.txt")]
    assert run(["evaluate", "score", results, *words]) == 2
    assert "none.txt cannot be read" in capsys.readouterr().err
