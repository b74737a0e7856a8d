"""All tiers on this machine: `loraretriever up` and LocalStack, on tiny random checkpoints."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.contract.errors import ConfigurationError
from orchestrator.cli.main import run
from orchestrator.cli.settings import child_environment
from orchestrator.devstack.stack import LocalStack, StackPlan, read_state
from tests.support.harness.cli_process import (
    Models,
    assert_nothing_runs_in,
    processes_naming,
    read_until,
    start,
    write_models,
)
from tests.support.harness.dataset_files import write_episodes


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def plan_of(models: Models, work_dir: Path, data: Path | None = None) -> StackPlan:
    return StackPlan(
        work_dir=work_dir,
        environment=child_environment(own_settings=False),
        retrieval={"embedder_path": models.embedder, "device": "cpu"},
        generation={"model_path": models.base, "adapter_roots": [models.adapters], "device": "cpu"},
        orchestrator={"dataset_roots": [data or work_dir]},
        start_timeout_s=90,
        grace_s=5,
    )


@pytest.fixture(scope="module")
def stack(models: Models, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    work_dir = tmp_path_factory.mktemp("stack")
    with LocalStack(plan_of(models, work_dir, data)) as running:
        assert read_state(work_dir) == running.addresses
        for name in ("a0", "a1"):
            words = ["--checkpoint", str(models.adapters / name), "--kind", "app", "--count", "3", "--tag", "tiny"]
            file = write_episodes(data / name)
            target = ["--retrieval-target", running.addresses.retrieval]
            assert run(["adapters", "add", name, "--examples", str(file), *words, *target]) == 0
        yield running
    assert read_state(work_dir) is None
    assert_nothing_runs_in(work_dir)


def up(models: Models, work_dir: Path, *words: str) -> list[str]:
    folders = ["--model-path", str(models.base), "--embedder-path", str(models.embedder)]
    return ["up", *folders, "--adapter-roots", str(models.adapters), "--work-dir", str(work_dir), *words]


@pytest.mark.timeout(180)
def test_adapters_are_listed_shown_and_removed(
    stack: LocalStack, models: Models, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = ["--retrieval-target", stack.addresses.retrieval]
    assert run(["adapters", "list", "--json", *target]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [adapter["adapter_id"] for adapter in listed] == ["a0", "a1"]
    assert [(adapter["base_model"], adapter["rank"]) for adapter in listed] == [
        ("Qwen2-VL-tiny", 2),
        ("Qwen2-VL-tiny", 4),
    ]
    assert [adapter["example_count"] for adapter in listed] == [3, 3]
    again = ["adapters", "add", "a0", "--checkpoint", str(models.adapters / "a0")]
    assert run([*again, "--examples", str(data / "a0" / "train.jsonl"), *target]) == 1
    assert "already" in capsys.readouterr().err
    assert run([*again[:2], "extra", *again[3:], "--examples", str(data / "a0" / "train.jsonl"), *target]) == 0
    assert run(["adapters", "show", "extra", *target]) == 0
    assert "Qwen2-VL-tiny" in capsys.readouterr().out
    assert run(["adapters", "remove", "extra", *target]) == 0
    capsys.readouterr()
    assert run(["adapters", "show", "extra", *target]) == 1
    assert "extra" in capsys.readouterr().err


@pytest.mark.timeout(180)
@pytest.mark.parametrize("method", ["mixture", "selection", "base", "fusion"])
def test_ask_streams_what_it_answers_as_json(
    stack: LocalStack, data: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    image = str(data / "a0" / "images" / "0_0.png")
    words = ["ask", "Send letter 0.", "--image", image, "--merge-method", method, "--fusion-method", "concat"]
    words += ["--top-k", "2", "--max-new-tokens", "4", "--orchestrator-target", stack.addresses.orchestrator]
    assert run([*words, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    applied = {each["adapter_id"]: each["weight"] for each in answer["generation"]["applied"]}
    assert len(applied) == {"mixture": 2, "selection": 1, "base": 0, "fusion": 2}[method]
    assert run([*words, "--show-similarities"]) == 0
    shown = capsys.readouterr().out
    assert answer["generation"]["text"].strip() in shown
    assert all(f"{name} {weight:.3f}" in shown for name, weight in applied.items())
    assert ("retrieved adapter" in shown) == (method != "base") or method == "base"


@pytest.mark.timeout(180)
def test_an_evaluation_runs_and_reports(stack: LocalStack, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = ["--orchestrator-target", stack.addresses.orchestrator]
    files = [str(data / name / "train.jsonl") for name in ("a0", "a1")]
    words = ["--strategy", "base,mixture,oracle", "--adapters-by-name", "--num-samples", "1", "--max-new-tokens", "4"]
    assert run(["evaluate", "run", *files, *words, "--json", *target]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["strategies"] == ["base", "mixture", "oracle"]
    assert (summary["recorded_samples"], summary["failed_samples"]) == (12, 0)
    job_id = summary["facts"]["evaluation_id"]
    assert run(["evaluate", "status", job_id, "--json", *target]) == 0
    job = json.loads(capsys.readouterr().out)
    assert (job["state"], job["done_samples"]) == ("succeeded", 12)
    assert run(["evaluate", "status", *target]) == 0
    assert job_id in capsys.readouterr().out
    assert run(["evaluate", "report", job_id, *target]) == 0
    assert capsys.readouterr().out == (Path(job["output_uri"]) / "summary.md").read_text(encoding="utf-8")
    records = str(Path(job["output_uri"]) / "records.jsonl")
    assert run(["evaluate", "score", records, "--strategy", "oracle", "--metric", "legacy", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step_count"] == 4
    assert run(["evaluate", "status", "no-such-job", *target]) == 1


@pytest.mark.timeout(180)
def test_a_second_stack_in_the_same_folder_is_refused(stack: LocalStack, models: Models) -> None:
    work_dir = stack.work_dir
    with pytest.raises(ConfigurationError, match=rf"tiers run in .* already \(process {os.getpid()}\)"):
        LocalStack(plan_of(models, work_dir)).__enter__()
    stack.check()


@pytest.mark.parametrize(
    ("number", "to_group", "status"),
    [(signal.SIGINT, True, 130), (signal.SIGINT, False, 130), (signal.SIGHUP, False, 129)],
    ids=["ctrl-c", "interrupt", "hang-up"],
)
def test_a_signal_while_starting_leaves_nothing_behind(
    models: Models, tmp_path: Path, number: signal.Signals, to_group: bool, status: int
) -> None:
    process = start(up(models, tmp_path / "up", "--free-ports"), tmp_path)
    read_until(process, "redis ready")
    assert processes_naming(tmp_path / "up")
    (os.killpg if to_group else os.kill)(process.pid, number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == status, output
    assert "Traceback" not in output
    assert_nothing_runs_in(tmp_path / "up")


@pytest.mark.timeout(180)
def test_a_stop_signal_ends_every_running_tier(models: Models, tmp_path: Path) -> None:
    process = start(up(models, tmp_path / "up", "--free-ports", "--json"), tmp_path)
    addresses = json.loads("{" + read_until(process, "}").partition("{")[2])
    assert addresses["orchestrator"].startswith("127.0.0.1:")
    assert len(processes_naming(tmp_path / "up")) > 5
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert "Traceback" not in output
    assert_nothing_runs_in(tmp_path / "up")


def pid_of(work_dir: Path, tier: str) -> int:
    return int(json.loads((work_dir / "ready" / f"{tier}.json").read_text())["pid"])


@pytest.mark.timeout(180)
def test_a_killed_worker_is_started_again_and_any_other_tier_ends_them_all(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, work_dir = write_episodes(tmp_path / "data"), tmp_path / "up"
    process = start(up(models, work_dir, "--free-ports"), tmp_path)
    said = read_until(process, "running; register adapters")
    state = read_state(work_dir)
    assert state is not None
    for tier, address in (("RETRIEVAL", state.retrieval), ("ORCHESTRATOR", state.orchestrator)):
        line = f"export LORARETRIEVER_CLIENT_{tier}_TARGET={address}"
        assert line in said
    os.kill(pid_of(work_dir, "worker"), signal.SIGKILL)
    assert "worker died, and is started again" in read_until(process, "worker died")
    words = ["--strategy", "base", "--num-samples", "1", "--max-new-tokens", "2"]
    assert run(["evaluate", "run", str(file), *words, "--orchestrator-target", state.orchestrator]) == 0
    os.kill(pid_of(work_dir, "generation"), signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "error: generation was ended by SIGKILL" in output
    assert f"jobs are kept: started again in the same work folder {work_dir}, they go on" in output
    assert_nothing_runs_in(work_dir)


def test_tiers_end_when_the_command_is_killed(models: Models, tmp_path: Path) -> None:
    process = start(up(models, tmp_path / "up", "--free-ports"), tmp_path)
    read_until(process, "redis ready")
    process.kill()
    process.communicate()
    assert_nothing_runs_in(tmp_path / "up", within_s=30)


def test_a_tier_that_cannot_start_is_named_with_its_reason(models: Models, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    process = start(up(models, tmp_path / "up", "--free-ports", "--embedder-path", str(broken)), tmp_path)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2, output
    assert "error: retrieval ended with status 2 while starting; " in output
    assert str(broken) in output
    assert "Traceback" not in output
    assert_nothing_runs_in(tmp_path / "up")


def test_a_port_in_use_is_named_before_anything_starts(models: Models, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        words = ["--free-ports", "--generation-setting", f"address={address}"]
        done: subprocess.Popen[str] = start(up(models, tmp_path / "up", *words), tmp_path)
        output, _ = done.communicate(timeout=60)
    assert done.returncode == 2
    assert f"cannot listen on {address}" in output
    assert not (tmp_path / "up" / "logs").exists()
