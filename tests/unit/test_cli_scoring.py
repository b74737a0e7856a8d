"""`evaluate score` and `compare` on files: no server, one JSON object, exit codes for continuous integration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infra.contract.errors import InvalidArgumentError
from orchestrator.cli import run
from orchestrator.commands.evaluated import AdapterLabels, dataset_specs, read_mapping
from orchestrator.commands.scoring import distinct_names
from orchestrator.commands.settings import client_settings
from tests.fakes.chat_endpoint import fake_chat

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


@pytest.mark.parametrize(("fail_under", "status"), [("0.6", 0), ("0.7", 1), ("70", 2)])
def test_a_score_below_the_mark_fails_the_command_after_it_was_printed(
    results: str, fail_under: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", "score", results, "--fail-under", fail_under, "--json"]) == status
    output = capsys.readouterr()
    assert json.loads(output.out)["metric"] == "action"
    assert ("below 0.7" in output.err) == (status == 1)


def test_compare_prints_the_paired_difference(results: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    better = write(tmp_path / "better.jsonl", [{**ROWS[0], "predictions": ROWS[0]["ground_truths"]}, ROWS[1]])
    assert run(["evaluate", "compare", results, better, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["difference"]["value"] == pytest.approx(1 / 3)
    assert found["difference"]["low"] < 1 / 3 < found["difference"]["high"]
    assert run(["evaluate", "compare", results, better]) == 0
    assert "+33.3 [" in capsys.readouterr().out


def test_tables_name_files_by_what_tells_them_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_compare_says_how_many_questions_it_left_out(
    results: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write(tmp_path / "other.jsonl", [ROWS[0], {**ROWS[1], "ground_truths": ["Scroll down"]}])
    assert run(["evaluate", "compare", results, other, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["left_out"] == 1
    assert run(["evaluate", "compare", results, other]) == 0
    output = capsys.readouterr()
    assert "left out" in output.out
    assert "Left out: questions that both have a score for" in output.err


def test_the_table_of_scores_has_the_parts_of_actions(results: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", "score", results]) == 0
    shown = capsys.readouterr().out
    assert "type right" in shown
    assert "argument right" in shown
    assert "± 0.0%" not in shown
    assert run(["evaluate", "score", results, "--metric", "legacy"]) == 0
    assert "argument right" not in capsys.readouterr().out


def test_a_judge_grades_once_with_the_key_of_the_environment(
    results: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LORARETRIEVER_CLIENT_JUDGE_KEY", "secret")
    client_settings.cache_clear()
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("{truth} or {answer}")
    with fake_chat(lambda question: "SCORE: 1" if question == "Scroll up or Scroll up" else "SCORE: 0") as chat:
        words = ["--judge", chat.base_url, "--judge-model", "grader", "--judge-prompt", str(prompt)]
        words += ["--judge-cache", str(tmp_path / "cache"), "--judge-concurrency", "1", "--json"]
        assert run(["evaluate", "score", results, *words]) == 0
        first = json.loads(capsys.readouterr().out)
        assert run(["evaluate", "score", results, *words]) == 0
        again = json.loads(capsys.readouterr().out)
    client_settings.cache_clear()
    assert (first["step_accuracy"], first["metric"]) == (pytest.approx(2 / 3), "judge grader")
    assert (first["judge_calls"], first["judge_cached"], first["judge_prompt_tokens"]) == (2, 1, 20)
    assert (again["judge_calls"], again["judge_cached"], again["step_accuracy"]) == (0, 3, first["step_accuracy"])
    assert chat.keys == {"Bearer secret"}


def test_a_judge_without_a_model_or_a_prompt_is_asked_wrongly(
    results: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", "score", results, "--judge", "http://127.0.0.1:9/v1"]) == 2
    assert "--judge-model" in capsys.readouterr().err
    words = ["--judge", "http://127.0.0.1:9/v1", "--judge-model", "m", "--judge-prompt", str(tmp_path / "none.txt")]
    assert run(["evaluate", "score", results, *words]) == 2
    assert "none.txt cannot be read" in capsys.readouterr().err


def test_folders_and_patterns_are_a_dataset_for_each_file(tmp_path: Path) -> None:
    for name in ("apps/gmail.jsonl", "apps/ebay.jsonl", "split/clock/test.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    names = [spec.name for spec in dataset_specs([str(tmp_path / "apps"), f"s={tmp_path}/split/*/test.jsonl"])]
    assert names == ["ebay", "gmail", "s.clock"]
    (far,) = dataset_specs(["far/away/*.jsonl"])
    assert (far.name, far.uri) == ("", "far/away/*.jsonl")


def test_adapters_are_named_by_a_form_a_map_or_a_field(tmp_path: Path) -> None:
    files = [str(tmp_path / f"{name}.jsonl") for name in ("gmail", "ebay")]
    mapping = tmp_path / "map.json"
    mapping.write_text('{"gmail": "mail"}')

    def adapters(labels: AdapterLabels) -> list[str]:
        return [spec.adapter_id for spec in dataset_specs(files, labels)]

    assert adapters(AdapterLabels(["app_lora_{}", "ebay=mine"])) == ["app_lora_gmail", "mine"]
    assert adapters(AdapterLabels(mapping=read_mapping(mapping))) == ["mail", ""]
    rows = dataset_specs(files, AdapterLabels(row_field="app", mapping=read_mapping(mapping)))
    assert {(spec.adapter_field, spec.adapter_of) for spec in rows} == {("app", (("gmail", "mail"),))}
    mapping.write_text("[]")
    with pytest.raises(InvalidArgumentError, match="must hold an object"):
        read_mapping(mapping)
