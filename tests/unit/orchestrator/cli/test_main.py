from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from infra.contract.errors import InvalidArgumentError
from orchestrator.cli.main import run
from tests.support.harness.dataset_files import write_episodes


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["upp"], "No such command 'upp'"),
        (["ask"], "Missing argument 'text'; see 'loraretriever ask --help'"),
        (["ask", "hi", "--topk", "3"], "--topk"),
        (["ask", "hi", "--top-k", "0"], "error: --top-k: must be at least 1"),
        (["ask", ""], "text: a message needs at least one part"),
        (["ask", "hi", "--strategy", "base,mixture"], "--strategy: 'base,mixture' is not one strategy"),
        (["ask", "hi", "--strategy", "base-out-of-domain", "--adapter", "a"], "--strategy: base does not retrieve"),
        (
            ["ask", "hi", "--strategy", "fusion-ties", "--fusion-method", "svd"],
            "--fusion-method: contradicts fusion-ties",
        ),
        (["ask", "hi", "--merge-method", "magic"], "--strategy: 'magic' is not a strategy"),
        (["ask", "hi", "--strategy", "mixture-out-of-domain"], "--adapter: mixture-out-of-domain needs the adapter"),
        (["ask", "hi", "--weighting-temperature", "0"], "--weighting-temperature: must be finite and above 0"),
        (["ask", "hi", "--temperature", "-1"], "--temperature: "),
        (["ask", "hi", "--image", "missing.png"], "missing.png cannot be read"),
        (["ask", "  "], "the message is empty"),
        (["evaluate", "run"], "name at least one JSONL file"),
        (
            ["evaluate", "run", "x.jsonl", "--strategy", "magic"],
            "--strategy: 'magic' is not a strategy; use one of base, selection, mixture",
        ),
        (
            ["evaluate", "run", "x.jsonl", "--strategy", "oracle"],
            "--adapter: strategy 'oracle' needs the adapter trained",
        ),
        (["evaluate", "run", "x.jsonl", "--num-samples", "0"], "error: --num-samples: must be at least 1"),
        (["adapters", "add", "a", "--checkpoint", "here"], "give either --examples train.jsonl or --vectors"),
        (["demo", "--world", "nowhere"], "there is no world nowhere; --world takes"),
        (["up", "--model-path", "somewhere"], "--embedder-path is missing"),
        (["up", "--model-path", "no-m", "--embedder-path", "no-e"], "--model-path no-m is not a folder"),
    ],
)
def test_usage_error_is_one_line_and_status_2(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert expected in output.err
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "tier"),
    [
        (["ask", "hi", "--orchestrator-target"], "orchestrator"),
        (["evaluate", "status", "--orchestrator-target"], "orchestrator"),
        (["adapters", "list", "--retrieval-target"], "retrieval"),
    ],
)
def test_unreachable_tier_is_named_with_address_and_remedy(
    arguments: list[str], tier: str, capsys: pytest.CaptureFixture[str]
) -> None:
    address = free_address()
    assert run([*arguments, address]) == 1
    assert f"the {tier} tier does not answer at {address}; start it with 'loraretriever up'" in capsys.readouterr().err


def test_debug_raises_instead_of_printing(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError):
        run(["ask", "hi", "--image", str(tmp_path / "missing.png"), "--debug"])


def test_options_may_be_spelled_with_underscores(capsys: pytest.CaptureFixture[str]) -> None:
    address = free_address()
    words = ["--top_k=3", "--merge_method", "fusion", "--lora_type", "app", "--show_similarities"]
    assert run(["ask", "hi", *words, "--orchestrator_target", address]) == 1
    assert f"does not answer at {address}" in capsys.readouterr().err


def test_options_of_study_are_accepted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, address = write_episodes(tmp_path / "gmail"), free_address()
    words = f"--test_data {file} --top_k 3 --merge_method mixture --lora_type all --num_samples 5 --gpu_id 0 --debug"
    assert run([*f"evaluate run {words}".replace("--debug", "").split(), "--orchestrator-target", address]) == 1
    assert "--gpu-id has no effect" in capsys.readouterr().err


def test_evaluate_only_scores_a_result_file_without_a_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"episode_id": "1", "mode": "m", "num_steps": 1, "ground_truths": ["Wait for response"]}
    results = tmp_path / "results.jsonl"
    results.write_text(json.dumps({**row, "predictions": ["Wait for response"]}) + "\n")
    words = ["--evaluate_only", "--threshold", "0.5", "--json"]
    assert run(["evaluate", "run", "--test_data", str(results), *words]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert {score["metric"].partition(" ")[0]: score["step_accuracy"] for score in scores} == {
        "action": 1,
        "legacy": 1,
        "legacy_row": 1,
    }
    assert run(["evaluate", "score", str(results), "--metric", "action"]) == 0
    assert "100.0%" in capsys.readouterr().out


def test_version_and_help_exit_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("loraretriever ")
    assert run(["evaluate", "run", "--help"]) == 0
    assert "--num-samples" in capsys.readouterr().out


def test_serve_help_is_that_of_tier() -> None:
    command = [sys.executable, "-m", "orchestrator.cli", "serve", "orchestrator", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--retrieval-target" in done.stdout


def test_serve_passes_flags_and_exit_status_through() -> None:
    command = [sys.executable, "-m", "orchestrator.cli", "serve", "orchestrator", "--shard-sise", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "did you mean --shard-size?" in done.stderr


def test_output_without_terminal_has_no_colours(capsys: pytest.CaptureFixture[str]) -> None:
    run(["evaluate", "run", "--help"])
    run(["upp"])
    output = capsys.readouterr()
    assert "\x1b[" not in output.out + output.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["ask", "\udcd6ffne"],
        ["ask", "hi", "--include", "a\udcff"],
        ["ask", "hi", "--image", "/tmp/\udcd6.png"],
        ["adapters", "add", "x", "--checkpoint=/tmp/x", "--description=\udcd6ffne"],
        ["adapters", "list", "--kind", "\udcd6"],
        ["evaluate", "run", "\udcd6.jsonl"],
        ["evaluate", "judge", "job", "--judge-model", "\udcd6"],
        ["retrieval", "evaluate", "\udcd6"],
        ["inspect", "/tmp/\udcd6"],
        ["serve", "generation", "--model-path", "/tmp/\udcd6"],
        ["ask", "\ud800"],
    ],
)
def test_argument_that_is_not_utf8_is_one_line_and_status_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: argument ")
    assert "is not UTF-8" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_standard_input_that_is_not_utf8_is_one_line_and_status_2(locale: str) -> None:
    command = [sys.executable, "-m", "orchestrator.cli", "ask", "-"]
    environment = os.environ | {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(command, input=b"\xd6ffne die App", capture_output=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"error: text: standard input is not UTF-8 (byte 1); convert it first, such as with iconv\n"
