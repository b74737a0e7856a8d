from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from infra.contract.errors import CheckpointError, InvalidArgumentError, NotFoundError
from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.cli import targets
from orchestrator.cli.commands.serve import without_gpu_id
from orchestrator.cli.commands.up import exports
from orchestrator.cli.dataset_args import AdapterLabels, dataset_specs, strategies_of
from orchestrator.cli.errors import worded
from orchestrator.cli.main import run
from orchestrator.cli.output import print_text
from orchestrator.cli.screens import draw
from orchestrator.cli.settings import child_environment, client_settings
from orchestrator.devstack.stack import STATE_FILE, Addresses
from orchestrator.registration.peft_folder import read_adapter
from orchestrator.registration.training_examples import example_prompts, read_vectors
from tests.support.harness.dataset_files import write_episodes
from tests.support.harness.images import picture


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["upp"], "No such command 'upp'"),
        (["ask"], "Missing argument 'text'; see 'loraretriever ask --help'"),
        (["ask", "hi", "--topk", "3"], "--topk"),
        (["ask", "hi", "--top-k", "0"], "error: --top-k: must be at least 1"),
        (["ask", "hi", "--merge-method", "magic"], "magic"),
        (["ask", "hi", "--image", "missing.png"], "missing.png cannot be read"),
        (["ask", "  "], "the message is empty"),
        (["evaluate", "run"], "name at least one JSONL file"),
        (["evaluate", "run", "x.jsonl", "--strategy", "magic"], "'magic' is none of base, selection, mixture"),
        (
            ["evaluate", "run", "x.jsonl", "--strategy", "oracle"],
            "--adapter: strategy 'oracle' needs the adapter trained",
        ),
        (["evaluate", "run", "x.jsonl", "--num-samples", "0"], "error: --num-samples: must be at least 1"),
        (["adapters", "add", "a", "--checkpoint", "here"], "give either --examples train.jsonl or --vectors"),
        (["demo", "--world", "nowhere"], "the demo world is not whole"),
        (["up", "--model-path", "somewhere"], "--embedder-path is missing"),
        (["up", "--model-path", "no-m", "--embedder-path", "no-e"], "--model-path no-m is no folder"),
    ],
)
def test_what_is_asked_wrongly_is_one_line_and_status_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert said in output.err
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
def test_a_tier_that_is_not_there_is_named_with_its_address_and_the_remedy(
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


def test_the_studys_options_of_an_evaluation_are_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    assert {score["metric"].partition(" ")[0]: score["step_accuracy"] for score in scores} == {"action": 1, "legacy": 1}
    assert run(["evaluate", "score", str(results), "--metric", "action"]) == 0
    assert "100.0%" in capsys.readouterr().out


def test_version_and_help_exit_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("loraretriever ")
    assert run(["evaluate", "run", "--help"]) == 0
    assert "--num-samples" in capsys.readouterr().out


def test_serve_help_is_the_tiers_own() -> None:
    command = [sys.executable, "-m", "orchestrator.cli", "serve", "orchestrator", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--retrieval-target" in done.stdout


def test_serve_passes_flags_and_exit_status_through() -> None:
    command = [sys.executable, "-m", "orchestrator.cli", "serve", "orchestrator", "--shard-sise", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "did you mean --shard-size?" in done.stderr


def test_output_that_is_no_terminal_has_no_colours(capsys: pytest.CaptureFixture[str]) -> None:
    run(["evaluate", "run", "--help"])
    run(["upp"])
    output = capsys.readouterr()
    assert "\x1b[" not in output.out + output.err


def test_datasets_are_named_by_file_or_folder_or_as_said(tmp_path: Path) -> None:
    file = write_episodes(tmp_path / "gmail")
    specs = dataset_specs([str(file), f"mine={file}", "far/away/ebay.jsonl"], AdapterLabels(["mine=gmail"]), "app")
    assert [spec.name for spec in specs] == ["gmail", "mine", "ebay"]
    assert [spec.adapter_id for spec in specs] == ["", "gmail", ""]
    assert [spec.uri for spec in specs] == [str(file), str(file), "far/away/ebay.jsonl"]
    assert dataset_specs([str(file)], AdapterLabels(by_name=True))[0].adapter_id == "gmail"
    assert dataset_specs([str(file)], AdapterLabels(["other"]))[0].adapter_id == "other"
    with pytest.raises(InvalidArgumentError, match="names no dataset"):
        dataset_specs([str(file)], AdapterLabels(["gmial=gmail"]))


def test_strategies_are_named_as_reports_name_them() -> None:
    words = ["base,fusion-concat", "mixture-out-of-domain"]
    assert [strategy.label for strategy in strategies_of(words)] == ["base", "fusion-concat", "mixture-out-of-domain"]
    assert strategies_of(["oracle"])[0].strategy is AnswerStrategy.ORACLE
    with pytest.raises(InvalidArgumentError, match="mixture-concat"):
        strategies_of(["mixture-concat"])


def test_an_adapter_folder_says_base_model_and_rank(tmp_path: Path) -> None:
    config = {"base_model_name_or_path": "/models/Qwen2-VL-7B-Instruct/", "r": 8, "rank_pattern": {"q_proj": 16}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    adapter = read_adapter("gmail", tmp_path, kind="app")
    assert (adapter.base_model, adapter.rank, adapter.checkpoint_uri) == ("Qwen2-VL-7B-Instruct", 16, str(tmp_path))
    assert read_adapter("gmail", Path("gmail"), base_model="there").checkpoint_uri == "gmail"


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_an_adapter_folder_without_a_usable_config_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        read_adapter("gmail", tmp_path)


def test_examples_are_chosen_by_the_seed_and_asked_as_evaluation_asks(tmp_path: Path) -> None:
    file = write_episodes(tmp_path, episodes=4, steps=3)
    prompts = example_prompts(file, count=5, seed=1)
    assert prompts == example_prompts(file, count=5, seed=1)
    assert prompts != example_prompts(file, count=5, seed=2)
    assert all(len(prompt.images) == 1 for prompt in prompts)
    assert len(example_prompts(file, count=100, seed=0)) == 12
    assert any("Actions so far:\nOpen App: Gmail" in prompt.user_text for prompt in prompts)


def test_vectors_are_read_as_little_endian_float32(tmp_path: Path) -> None:
    np = pytest.importorskip("numpy")
    np.save(tmp_path / "mean.npy", np.array([1.0, 2.0]))
    assert read_vectors(tmp_path / "mean.npy") == [np.array([1, 2], dtype="<f4").tobytes()]
    np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(InvalidArgumentError, match="file of numbers"):
        read_vectors(tmp_path / "pickled.npy")


def test_a_flag_goes_over_the_environment_over_a_running_stack_over_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "STACK_DIRS", (tmp_path,))
    client_settings.cache_clear()
    assert targets.target("retrieval").address == "127.0.0.1:50051"
    state = {"retrieval": "r:1", "generation": "g:1", "orchestrator": "o:1", "redis_url": "", "pid": os.getpid()}
    (tmp_path / STATE_FILE).write_text(json.dumps(state))
    assert targets.target("retrieval").address == "r:1"
    monkeypatch.setenv("LORARETRIEVER_CLIENT_RETRIEVAL_TARGET", "e:1")
    client_settings.cache_clear()
    assert targets.target("retrieval").address == "e:1"
    assert targets.target("retrieval", "f:1").address == "f:1"
    client_settings.cache_clear()


def test_up_says_how_commands_find_tiers_that_are_not_where_they_look_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "STACK_DIRS", (tmp_path,))
    defaults = Addresses(**targets.DEFAULTS, redis_url="", pid=os.getpid())
    moved = replace(defaults, orchestrator="127.0.0.1:7")
    lines = [
        "export LORARETRIEVER_CLIENT_RETRIEVAL_TARGET=127.0.0.1:50051",
        "export LORARETRIEVER_CLIENT_ORCHESTRATOR_TARGET=127.0.0.1:",
    ]
    assert exports(defaults) == []
    assert exports(moved) == [lines[0], f"{lines[1]}7"]
    (tmp_path / STATE_FILE).write_text(json.dumps(asdict(moved)))
    assert exports(defaults) == [lines[0], f"{lines[1]}50053"]


def test_errors_of_the_service_are_worded_as_commands() -> None:
    assert worded(NotFoundError("there is none; ListEvaluations names those that exist")) == (
        "there is none; 'loraretriever evaluate list' names those that exist"
    )
    assert worded(NotFoundError("no file below the dataset roots (/a)")).endswith(
        "(/a); 'loraretriever up --dataset-roots DIR' says below which folders datasets may lie"
    )
    assert worded(InvalidArgumentError("datasets[0].adapter_id", "x")) == "--adapter: x"
    assert worded(InvalidArgumentError("prompt.messages[0]", "x")) == "prompt.messages[0]: x"
    assert worded(InvalidArgumentError("", "x")) == "x"


def test_a_stack_that_has_died_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "STACK_DIRS", (tmp_path,))
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    state = {"retrieval": "r:1", "generation": "g:1", "orchestrator": "o:1", "redis_url": "", "pid": ended.pid}
    (tmp_path / STATE_FILE).write_text(json.dumps(state))
    assert targets.target("retrieval").address == "127.0.0.1:50051"


def test_the_demos_tiers_do_not_see_the_callers_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORARETRIEVER_RETRIEVAL_QDRANT_URL", "http://production")
    monkeypatch.setenv("MAX_PIXELS", "1")
    assert not {"LORARETRIEVER_RETRIEVAL_QDRANT_URL", "MAX_PIXELS"} & child_environment(own_settings=False).keys()
    assert "MAX_PIXELS" in child_environment(own_settings=True)


def test_a_screen_is_drawn_two_pixels_a_character(tmp_path: Path) -> None:
    picture(112, 140).save(tmp_path / "screen.png")
    lines = draw(tmp_path / "screen.png", columns=20).plain.splitlines()
    assert (len(lines), len(lines[0])) == (12, 20)


def test_an_unknown_variable_of_the_client_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client_settings.cache_clear()
    monkeypatch.setenv("LORARETRIEVER_CLIENT_TOKE", "secret")
    assert run(["adapters", "list"]) == 2
    said = capsys.readouterr().err
    assert "LORARETRIEVER_CLIENT_TOKE in the environment is no setting" in said
    assert "secret" not in said
    client_settings.cache_clear()


@pytest.mark.parametrize("words", [["--gpu_id", "1"], ["--gpu-id=1"]])
def test_the_gpu_is_taken_out_of_a_tiers_flags(words: list[str]) -> None:
    assert without_gpu_id(["--device", "cuda", *words, "--dtype", "auto"]) == (
        ["--device", "cuda", "--dtype", "auto"],
        "1",
    )


def test_a_model_cannot_move_the_cursor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    print_text("a\x1b[2Jb\n")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    print_text("a\x1b[2Jb\n")
    assert capsys.readouterr().out == "a\x1b[2Jb\na\ufffd[2Jb\n"
