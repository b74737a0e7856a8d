"""Commands that start and follow jobs: what they ask for, and how they exit."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from infra.contract.errors import UnavailableError
from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.cli.main import run
from orchestrator.cli.strategies import complete_strategies, parse_strategies, strategy_labels
from orchestrator.evaluation.data.datasets import BadRow
from orchestrator.evaluation.job import Evaluation, EvaluationState
from orchestrator.evaluation.records import Record
from orchestrator.evaluation.report.html.samples import ThumbnailBudget
from orchestrator.evaluation.report.matrix import matrix_strategies
from orchestrator.evaluation.report.output_files import write_report
from orchestrator.evaluation.spec import DatasetSpec, EvaluatedStrategy, EvaluationSpec
from tests.support.harness.evaluation_data import answered, failure, sample
from tests.support.harness.single_job import OneJob

RIGHT, WRONG = "Scroll up", "Scroll down"
BASE, MIXTURE = EvaluatedStrategy(AnswerStrategy.BASE), EvaluatedStrategy(AnswerStrategy.MIXTURE)
SPEC = EvaluationSpec((DatasetSpec("clock", "clock.jsonl", "clock"),), (BASE, MIXTURE))


def records(strategy: EvaluatedStrategy, right: int, wrong: int = 0, failed: int = 0) -> list[Record]:
    asked = [sample(RIGHT, episode=f"e{number}", strategy=strategy) for number in range(right + wrong + failed)]
    answers = [RIGHT] * right + [WRONG] * wrong
    return [*map(answered, asked, answers), *map(failure, asked[right + wrong :])]


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> OneJob:
    """Serve a job in which base is right once of two times, and mixture always."""
    return OneJob([*records(BASE, 1, 1), *records(MIXTURE, 2)], SPEC).serve(monkeypatch)


@pytest.mark.parametrize("command", [["watch", "ev-1"], ["run", "x.jsonl"]])
@pytest.mark.parametrize(("right", "status"), [(1, 0), (0, 1)])
def test_command_names_why_samples_failed_and_fails_if_all_did(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str], right: int, status: int
) -> None:
    failed = records(BASE, right, failed=3)
    OneJob(failed, SPEC).serve(monkeypatch)
    options = ["--strategy", "base,mixture"] if command[0] == "run" else []
    assert run(["evaluate", *command, *options]) == status
    errors = " ".join(capsys.readouterr().err.split())
    assert f"3 of {right + 3} samples failed:" in errors
    assert failed[-1].error is not None
    assert failed[-1].error.message in errors
    assert ("every sample failed" in errors) == (right == 0)


@pytest.mark.parametrize("command", [["watch", "ev-1"], ["run", "x.jsonl"], ["report", "ev-1"]])
@pytest.mark.parametrize(
    ("words", "outcome"),
    [
        ([], (0, "")),
        (["--fail-under", "0.5"], (0, "")),
        (["--fail-under", "0.6"], (1, "below 0.6: base 0.5000")),
        (["--fail-under", "0.6", "--fail-on", "mixture"], (0, "")),
        (["--fail-under", "0.5", "--metric", "exact_match"], (1, "below 0.5: base unscored, mixture unscored")),
        (["--fail-under", "0.5", "--fail-on", "oracle"], (2, "oracle is none of the job's strategies")),
    ],
)
def test_job_below_gate_fails_command(
    job: OneJob, capsys: pytest.CaptureFixture[str], command: list[str], words: list[str], outcome: tuple[int, str]
) -> None:
    options = ["--strategy", "base,mixture"] if command[0] == "run" else []
    status, message = outcome
    assert run(["evaluate", *command, *options, *words]) == status
    assert message in capsys.readouterr().err
    assert job.calls > 0 or status == 2


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--fail-under", "0.5"], 1),
        (["--fail-under", "0.5", "--max-failed", "0.98"], 0),
        (["--max-failed", "0.9"], 1),
        (["--max-failed", "0.98"], 0),
        ([], 0),
    ],
)
def test_score_of_few_samples_fails_gate(
    job: OneJob, capsys: pytest.CaptureFixture[str], words: list[str], status: int
) -> None:
    job.records = [*records(BASE, 2, failed=80), *records(MIXTURE, 82)]
    assert run(["evaluate", "watch", "ev-1", *words]) == status
    assert ("base: 80 of 82 samples are unscored; --max-failed allows" in capsys.readouterr().err) == (status == 1)


def test_half_of_samples_may_fail_and_no_more(job: OneJob) -> None:
    for failed, status in ((2, 0), (3, 1)):
        job.records = [*records(BASE, 2, failed=failed), *records(MIXTURE, 2 + failed)]
        assert run(["evaluate", "watch", "ev-1", "--fail-under", "0.5"]) == status


def test_planned_samples_without_record_are_unscored(job: OneJob, capsys: pytest.CaptureFixture[str]) -> None:
    job.state, job.planned = EvaluationState.CANCELLED, 20
    assert run(["evaluate", "report", "ev-1"]) == 0
    assert run(["evaluate", "report", "ev-1", "--fail-under", "0.5"]) == 1
    assert "mixture: 8 of 10 samples are unscored" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ["run", "x.jsonl"],
        ["run", "results.jsonl", "--evaluate-only"],
        ["matrix", "x.jsonl"],
        ["watch", "ev-1"],
        ["report", "ev-1"],
        ["judge", "ev-1", "--judge", "http://127.0.0.1:9/v1", "--judge-model", "m"],
        ["score", "ev-1"],
    ],
)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fail-under", "80"], "--fail-under: must be a share in 0..1, got 80; 80 % is 0.8"),
        (["--max-failed", "-1"], "--max-failed: must be a share in 0..1, got -1"),
        (["--fail-under", "nan"], "--fail-under: must be a share in 0..1"),
    ],
)
def test_invalid_gate_is_refused_before_any_call(
    job: OneJob, capsys: pytest.CaptureFixture[str], command: list[str], words: list[str], message: str
) -> None:
    assert run(["evaluate", *command, *words]) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert (output.out, job.calls) == ("", 0)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["matrix", "x.jsonl", "--fail-on", "base"], "give --fail-under too"),
        (["watch", "ev-1", "--fail-on", "base"], "give --fail-under too"),
        (["matrix", "x.jsonl", "--no-watch", "--fail-under", "0.5"], "leave --no-watch out"),
        (["run", "x.jsonl", "--no-watch", "--max-failed", "0.5"], "leave --no-watch out"),
        (["matrix", "x.jsonl", "--job", "ev-1"], "leave the options for them out"),
        (["matrix", "--job", "ev-1", "--threshold", "0.5"], "leave the options for them out"),
        (
            ["run", "x.jsonl", "--evaluate-only", "--fail-under", "0.5", "--fail-on", "base"],
            "--fail-on: has no effect on result files",
        ),
    ],
)
def test_options_without_effect_are_refused_before_any_call(
    job: OneJob, capsys: pytest.CaptureFixture[str], command: list[str], message: str
) -> None:
    assert run(["evaluate", *command]) == 2
    assert message in capsys.readouterr().err
    assert job.calls == 0


@pytest.mark.parametrize(
    "command", [["watch", "ev-1"], ["run", "x.jsonl"], ["matrix", "x.jsonl"], ["status", "ev-1", "--watch"]]
)
def test_stopped_job_fails_command_after_its_numbers_are_printed(
    job: OneJob, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    job.state = EvaluationState.CANCELLED
    assert run(["evaluate", *command]) == 1
    output = capsys.readouterr()
    assert "base" in output.out or "ev-1 cancelled" in output.out
    assert "job ev-1 did not finish: cancelled" in output.err
    job.state = EvaluationState.FAILED
    assert run(["evaluate", *command]) == 1


def test_bad_rows_are_printed(job: OneJob, capsys: pytest.CaptureFixture[str]) -> None:
    job.bad_rows = (BadRow("clock.jsonl", 3, "query is empty"), BadRow("clock.jsonl", 5, "query is empty"))
    for command in (["watch", "ev-1"], ["matrix", "--job", "ev-1"]):
        assert run(["evaluate", *command]) == 0
        message = capsys.readouterr().err
        assert "2 rows of the datasets could not be read, the first: clock.jsonl:3: query is empty." in message


def test_job_of_actions_and_whole_answers_prints_both_tables(job: OneJob, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [answered(sample("Paris", episode="f", strategy=strategy), "Paris") for strategy in (BASE, MIXTURE)]
    for more, titles in (([], (True, False)), (texts, (True, True))):
        job.records = [*records(BASE, 1, 1), *records(MIXTURE, 2), *more]
        assert run(["evaluate", "watch", "ev-1"]) == 0
        output = capsys.readouterr().out
        assert tuple(title in output for title in ("Step accuracy, %", "Whole answers, %")) == titles
        assert ("all steps" in output) == titles[1]


def test_locations_of_report_are_printed(job: OneJob, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["watch", "ev-1"], ["matrix", "--job", "ev-1"]):
        assert run(["evaluate", *command]) == 0
        output = capsys.readouterr().out
        assert "out/ev-1/summary.md" in output
        assert "out/ev-1/report.html" in output


def test_matrix_gates_mixture_unless_another_is_named(job: OneJob, capsys: pytest.CaptureFixture[str]) -> None:
    job.records = [*records(BASE, 1, 3), *records(MIXTURE, 3, 1)]
    for words, status in (([], 0), (["--fail-on", "base"], 1), (["--fail-on", "base", "--max-failed", "0"], 1)):
        assert run(["evaluate", "matrix", "--job", "ev-1", "--fail-under", "0.7", *words]) == status
    assert "below 0.7: base 0.2500" in capsys.readouterr().err
    assert run(["evaluate", "matrix", "x.jsonl", "--fail-under", "0.7", "--fail-on", "mixtrue"]) == 2
    assert job.specs == []


@pytest.mark.parametrize("command", ["run", "matrix"])
def test_threshold_and_tolerance_are_part_of_job(job: OneJob, command: str) -> None:
    words = ["--threshold", "0.25", "--point-tolerance", "10"]
    assert run(["evaluate", command, "x.jsonl", *words, "--no-watch"]) == 0
    assert run(["evaluate", command, "x.jsonl", "--no-watch"]) == 0
    assert [(spec.legacy_threshold, spec.point_tolerance_px) for spec in job.specs] == [(0.25, 10), (0.6, 63)]
    assert run(["evaluate", command, "x.jsonl", "--threshold", "60"]) == 2


def test_local_image_root_is_sent_as_absolute_path(
    job: OneJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "screens").mkdir()
    monkeypatch.chdir(tmp_path)
    for command in ("run", "matrix"):
        for root in ("screens", "elsewhere", ""):
            assert run(["evaluate", command, "x.jsonl", "--image-root", root, "--no-watch"]) == 0
    assert [spec.image_root for spec in job.specs] == [str(tmp_path / "screens"), "elsewhere", ""] * 2


def test_adapters_of_remote_files_are_sent_as_template(job: OneJob) -> None:
    for words in (
        ["run", "--adapters-by-name"],
        ["run", "--adapter", "app_lora_{}"],
        ["matrix"],
        ["matrix", "--adapters-by-name"],
    ):
        assert run(["evaluate", words[0], "far/*.jsonl", *words[1:], "--no-watch"]) == 0
    assert [spec.datasets[0].adapter_id for spec in job.specs] == ["{}", "app_lora_{}", "{}", "{}"]


def test_strategies_complete_in_shell() -> None:
    labels = strategy_labels()
    assert [strategy.label for strategy in parse_strategies(labels)] == list(labels)
    assert {strategy.label for strategy in matrix_strategies()} <= set(labels)
    assert complete_strategies("base,fusion-s") == ["base,fusion-svd", "base,fusion-svd-out-of-domain"]
    assert "oracle" in complete_strategies("")


def test_watched_job_prints_all_numbers_as_json(job: OneJob, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", "watch", "ev-1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == job.summary.to_json()
    job.spec = replace(SPEC, seed=1)
    assert run(["evaluate", "status", "ev-1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["spec"]["seed"] == 1


def test_job_is_retried_and_forgotten_by_id(job: OneJob, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", "retry", "ev-1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["evaluation_id"] == "ev-1"
    assert run(["evaluate", "delete", "ev-1", "ev-1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"deleted": ["ev-1", "ev-1"]}
    assert run(["evaluate", "delete", "ev-1", "ev-2"]) == 1
    output = capsys.readouterr().err
    assert "forgot ev-1" in output
    assert "ev-2" in output


def test_status_names_datasets_and_strategies_and_no_folder_before_the_end(
    job: OneJob, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["gmail", "ebay", *(f"app{number}" for number in range(12))]
    job.spec = replace(SPEC, datasets=tuple(DatasetSpec(name, f"{name}.jsonl", name) for name in names))
    assert run(["evaluate", "status", "ev-1"]) == 0
    shown = capsys.readouterr().out
    assert "datasets: gmail, ebay and 12 more; strategies: base, mixture; protocol: step" in shown
    assert "records and report: out/ev-1" in shown
    job.state = EvaluationState.RUNNING
    assert run(["evaluate", "status", "ev-1"]) == 0
    assert "records and report: will be in out/ev-1" in capsys.readouterr().out
    job.state = EvaluationState.FAILED
    assert run(["evaluate", "status", "ev-1"]) == 0
    assert "its records are kept: 'loraretriever evaluate retry ev-1' writes the report" in capsys.readouterr().out
    job.state = EvaluationState.RUNNING
    assert run(["evaluate", "list"]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("gmail, ebay and 12 more", "base, mixture", "step"))


def test_gate_without_actions_applies_to_whole_answers(job: OneJob, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [
        sample("It is blue.", episode=str(number), strategy=strategy)
        for strategy in (BASE, MIXTURE)
        for number in (1, 2)
    ]
    job.records = list(map(answered, asked, ["It is red.", *["It is blue."] * 3]))
    assert run(["evaluate", "watch", "ev-1", "--fail-under", "0.5"]) == 0
    assert run(["evaluate", "watch", "ev-1", "--fail-under", "0.6"]) == 1
    assert "below 0.6: base 0.5000" in capsys.readouterr().err


def test_report_is_read_from_folder_of_job(job: OneJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_report(str(tmp_path), job.summary, job.records, ThumbnailBudget(()))
    assert run(["evaluate", "report", str(tmp_path)]) == 0
    assert capsys.readouterr().out == (tmp_path / "summary.md").read_text()
    assert run(["evaluate", "report", str(tmp_path), "--fail-under", "0.6"]) == 1
    assert run(["evaluate", "report", str(tmp_path / "none")]) == 1
    assert job.calls == 0


@pytest.mark.parametrize("command", [["run", "x.jsonl"], ["watch", "ev-1"], ["status", "ev-1", "--watch"]])
def test_error_of_lost_orchestrator_says_that_job_is_kept(
    job: OneJob, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    async def watch(_evaluation_id: str) -> AsyncIterator[Evaluation]:
        yield replace(await job.get("ev-1"), state=EvaluationState.RUNNING)
        raise UnavailableError("the orchestrator tier does not answer at here:1")

    monkeypatch.setattr(job, "watch", watch)
    assert run(["evaluate", *command]) == 1
    message = capsys.readouterr().err
    assert "does not answer at here:1 (the job is kept: " in message
    assert "'loraretriever evaluate watch ev-1' follows it once the orchestrator runs again" in message


def test_good_whole_answers_do_not_hide_failed_actions(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [answered(sample("Paris", episode=f"t{number}", strategy=BASE), "Paris") for number in range(90)]
    spec = replace(SPEC, strategies=(BASE,))
    OneJob([*records(BASE, right=1, failed=9), *texts], spec).serve(monkeypatch)
    assert run(["evaluate", "report", "ev-1", "--fail-under", "0.9"]) == 1
    assert "9 of 10 samples are unscored" in capsys.readouterr().err
    assert run(["evaluate", "report", "ev-1", "--fail-under", "0.9", "--metric", "exact_match"]) == 0


@pytest.mark.parametrize("command", [["status"], ["watch"], ["report"], ["retry"]])
@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("latest", (0, "")),
        ("ev", (0, "")),
        ("ev-1", (0, "")),
        ("20990101-000000-00000000", (1, "there is no evaluation 2099")),
        ("other", (1, "there is no job 'other'; 'loraretriever evaluate list' shows all")),
    ],
)
def test_job_is_named_by_start_of_its_id_or_as_latest(
    job: OneJob, capsys: pytest.CaptureFixture[str], command: list[str], name: str, outcome: tuple[int, str]
) -> None:
    status, message = outcome
    assert run(["evaluate", *command, name]) == status
    assert message in " ".join(capsys.readouterr().err.split())


def test_start_of_several_ids_is_refused(
    job: OneJob, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def several() -> list[Evaluation]:
        return [replace(await job.get("ev-1"), evaluation_id=name) for name in ("ab-1", "ab-2")]

    monkeypatch.setattr(job, "list", several)
    assert run(["evaluate", "status", "ab"]) == 2
    assert "'ab' is the start of 2 ids: ab-1, ab-2" in " ".join(capsys.readouterr().err.split())
