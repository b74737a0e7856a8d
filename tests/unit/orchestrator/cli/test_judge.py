"""`evaluate judge`: the answers of a job graded by a real endpoint, into every file of its report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.cli.main import run
from orchestrator.evaluation.report.html.samples import ThumbnailBudget
from orchestrator.evaluation.report.output_files import write_records, write_report
from orchestrator.evaluation.report.summarize import summarize
from orchestrator.evaluation.report.summary import JobFacts
from orchestrator.evaluation.spec import DatasetSpec, EvaluatedStrategy, EvaluationSpec
from tests.support.harness.evaluation_data import answered, failure, sample
from tests.support.servers.chat_endpoint import FakeChat, fake_chat

BASE, MIXTURE = EvaluatedStrategy(AnswerStrategy.BASE), EvaluatedStrategy(AnswerStrategy.MIXTURE)
SPEC = EvaluationSpec((DatasetSpec("facts", "facts.jsonl"),), (BASE, MIXTURE))


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Write a job in which base answers good and poor, mixture good and good, and each fails once."""
    records = []
    for strategy, answers in ((BASE, ("good", "poor")), (MIXTURE, ("good", "good"))):
        asked = [sample("a fact", episode=f"e{number}", dataset="facts", strategy=strategy) for number in range(3)]
        records += [*map(answered, asked, answers), failure(asked[2])]
    summary = summarize(records, JobFacts(SPEC, "ev-1"))
    job = str(tmp_path / "ev-1")
    write_records(job, records, summary.scoring)
    write_report(job, summary, records, ThumbnailBudget())
    return job


@pytest.fixture
def chat(tmp_path: Path) -> Iterator[FakeChat]:
    with fake_chat(lambda question: "SCORE: 1" if question.endswith("good") else "SCORE: 0.25") as served:
        (tmp_path / "prompt.txt").write_text("{truth} / {answer}")
        yield served


def judge(folder: str, chat: FakeChat, *words: str) -> int:
    above = Path(folder).parent
    options = ["--judge", chat.base_url.replace("http://", "http://user:secret@"), "--judge-model", "grader"]
    options += ["--judge-prompt", str(above / "prompt.txt"), "--judge-cache", str(above / "cache")]
    return run(["evaluate", "judge", folder, *options, "--judge-concurrency", "1", *words])


def means(summary: dict[str, Any]) -> dict[str, Any]:
    return {cell["strategy"]: cell["judge"]["value"] for cell in summary["groups"]}


def test_grades_are_in_every_file_of_report(folder: str, chat: FakeChat, capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads(Path(folder, "summary.json").read_text())
    assert judge(folder, chat) == 0
    output = capsys.readouterr()
    assert "62.5 [" in output.out
    assert f"{folder}/report.html" in output.out
    assert "Unscored: 2 (no answer)" in output.err
    summary = json.loads(Path(folder, "summary.json").read_text())
    assert means(before) == {"base": None, "mixture": None}
    assert means(summary) == {"base": 0.625, "mixture": 1}
    assert (summary["judge"]["model"], summary["judge"]["prompt"]) == ("grader", "{truth} / {answer}")
    assert "secret" not in json.dumps(summary)
    assert [cell["action"] for cell in summary["groups"]] == [cell["action"] for cell in before["groups"]]
    assert "| base | 2 | 1 | 62.5 [0.0, 100.0] |  |" in Path(folder, "summary.md").read_text()
    page = Path(folder, "report.html").read_text()
    assert "Graded by a judge" in page
    assert page.count('"grade":0.25') == 1
    grades = [json.loads(line) for line in Path(folder, "judge.jsonl").read_text().splitlines()]
    assert {grade["key"]: grade["grade"] for grade in grades} == {
        "base/facts/e0/0": 1, "base/facts/e1/0": 0.25, "base/facts/e2/0": None,
        "mixture/facts/e0/0": 1, "mixture/facts/e1/0": 1, "mixture/facts/e2/0": None,
    }  # fmt: skip


def test_every_sample_has_a_line_with_reply_of_judge_or_reason(folder: str, chat: FakeChat) -> None:
    chat.reply = lambda question: "SCORE: 1" if question.endswith("good") else "who knows"
    assert judge(folder, chat) == 0
    lines = [json.loads(line) for line in Path(folder, "judge.jsonl").read_text().splitlines()]
    assert lines[:3] == [
        {"key": "base/facts/e0/0", "grade": 1, "reason": "", "reply": "SCORE: 1"},
        {"key": "base/facts/e1/0", "grade": None, "reason": "the judge's reply has no score", "reply": "who knows"},
        {"key": "base/facts/e2/0", "grade": None, "reason": "no answer", "reply": ""},
    ]
    assert len(lines) == 6


def test_grades_come_with_unscored_counts_and_paired_differences(
    folder: str, chat: FakeChat, capsys: pytest.CaptureFixture[str]
) -> None:
    assert judge(folder, chat) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "│ mixture │ 2 │ 1 │ 100.0 [34.2, 100.0] │ +37.5 [-100.0, +100.0] │" in shown
    assert "with 95 % intervals" in shown
    assert "±" not in shown
    page, text = Path(folder, "report.html").read_text(), Path(folder, "summary.md").read_text()
    assert "| mixture | 2 | 1 | 100.0 [34.2, 100.0] | +37.5 [-100.0, +100.0] |" in text
    for report in (page, text):
        assert "difference to base" in report
        assert "over the answers that have a grade." in report
    summary = json.loads(Path(folder, "summary.json").read_text())
    assert [cell["judge_unscored"] for cell in summary["groups"]] == [1, 1]
    assert summary["differences"][0]["judge"]["value"] == 0.375
    assert judge(folder, chat, "--json") == 0
    found = json.loads(capsys.readouterr().out)["strategies"]["mixture"]
    assert (found["unscored"], found["differences"]["base"]["value"]) == (1, 0.375)


def test_second_run_uses_cached_replies(folder: str, chat: FakeChat, capsys: pytest.CaptureFixture[str]) -> None:
    assert judge(folder, chat) == 0
    asked = len(chat.questions)
    capsys.readouterr()
    assert judge(folder, chat, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["judge"]["calls"], found["judge"]["cached"], len(chat.questions)) == (0, 4, asked)
    assert found["strategies"]["base"]["value"] == 0.625


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fail-under", "0.6"], ""),
        (["--fail-under", "0.7"], "below 0.7: base 0.6250"),
        (["--fail-under", "0.6", "--max-failed", "0.2"], "mixture: 1 of 3 samples are unscored"),
    ],
)
def test_low_or_too_few_grades_fail_command(
    folder: str, chat: FakeChat, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert judge(folder, chat, *words) == bool(message)
    assert message in capsys.readouterr().err


def test_ungraded_answers_count_against_gate(folder: str, chat: FakeChat, capsys: pytest.CaptureFixture[str]) -> None:
    chat.reply = lambda question: "SCORE: 1" if question.endswith("good") else "who knows"
    assert judge(folder, chat, "--fail-under", "0.6") == 1
    assert "base: 2 of 3 samples are unscored" in capsys.readouterr().err
    words = ["--judge", chat.base_url, "--judge-model", "grader", "--judge-cache", f"{folder}/../cache"]
    words += ["--judge-prompt", f"{folder}/../prompt.txt"]
    assert run(["evaluate", "score", folder, "--strategy", "base", *words, "--fail-under", "0.6"]) == 1
    assert f"{folder}: 2 of 3 samples are unscored" in capsys.readouterr().err


def test_folder_without_job_is_named(tmp_path: Path, chat: FakeChat, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert judge(str(empty), chat) == 1
    assert "summary.json" in capsys.readouterr().err
    (empty / "summary.json").write_text("{}")
    assert judge(str(empty), chat) == 2
    assert "is not the summary of a job" in capsys.readouterr().err
