"""All tiers on this machine: `loraretriever up` and LocalStack, on tiny random checkpoints."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from infra.contract.errors import ConfigurationError
from orchestrator.cli.main import run
from orchestrator.cli.settings import environment
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
        environment=environment().for_tiers(own_settings=False),
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
@pytest.mark.parametrize(
    ("words", "applied_count"),
    [
        (["mixture"], 2),
        (["selection"], 1),
        (["base"], 0),
        (["fusion", "--fusion-method", "concat"], 2),
        (["fusion-concat"], 2),
        (["fusion"], 2),
        (["oracle", "--adapter", "a1"], 1),
        (["uniform-all"], 2),
        (["random-k", "--seed", "1"], 2),
        (["mixture-out-of-domain", "--adapter", "a0"], 1),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_ask_takes_every_strategy(
    stack: LocalStack, data: Path, capsys: pytest.CaptureFixture[str], words: list[str], applied_count: int
) -> None:
    image = str(data / "a0" / "images" / "0_0.png")
    command = ["ask", "Send letter 0.", "--image", image, "--merge-method", *words]
    command += ["--top-k", "2", "--max-new-tokens", "4", "--orchestrator-target", stack.addresses.orchestrator]
    assert run([*command, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    applied = {share["adapter_id"]: share["weight"] for share in answer["generation"]["applied"]}
    assert len(applied) == applied_count
    if "--adapter" in words:
        assert list(applied) == ["a1"]
    assert run([*command, "--show-similarities"]) == 0
    shown = capsys.readouterr().out
    assert answer["generation"]["text"].strip() in shown
    assert all(f"{name} {weight:.3f}" in shown for name, weight in applied.items())


@pytest.mark.timeout(180)
def test_ask_names_option_of_missing_oracle(stack: LocalStack, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ask", "hello", "--strategy", "oracle", "--orchestrator-target", stack.addresses.orchestrator]
    assert run(words) == 2
    assert "error: --adapter: the oracle strategy needs the correct adapter's id" in capsys.readouterr().err


@pytest.mark.timeout(180)
def test_openai_client_answers_and_streams(stack: LocalStack, data: Path) -> None:
    image = base64.b64encode((data / "a0" / "images" / "0_0.png").read_bytes()).decode()
    fields: dict[str, Any] = {"messages": with_image(image), "max_tokens": 4}
    with openai.OpenAI(base_url=f"http://{stack.addresses.gateway}/v1", api_key="unused", max_retries=0) as client:
        assert {"auto", "base", "a0", "a1"} <= {model.id for model in client.models.list()}
        extension = {"loraretriever": {"top_k": 2}}
        for model, count in {"auto": 2, "auto:fusion-svd": 2, "auto:selection": 1, "a1": 1, "base": 0}.items():
            body = extension if model.startswith("auto") else {}
            answer: Any = client.chat.completions.create(model=model, extra_body=body, **fields)
            assert len(answer.loraretriever["adapters"]) == count
            assert answer.usage.completion_tokens <= 4
            stream: Any = client.chat.completions.create(
                model=model, stream=True, stream_options={"include_usage": True}, extra_body=body, **fields
            )
            chunks = list(stream)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            assert text == answer.choices[0].message.content
            assert chunks[-1].usage == answer.usage
        assert len(client.embeddings.create(model="embedder", input=["one", "two"]).data) == 2
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="base", messages=with_image(image[:200]))
        assert caught.value.param == "messages[0].content[0].image_url.url"


def with_image(data: str) -> list[Any]:
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    return [{"role": "user", "content": [image, {"type": "text", "text": "Send letter 0."}]}]


@pytest.mark.timeout(180)
def test_adapters_are_added_over_http(stack: LocalStack, models: Models) -> None:
    with httpx.Client(base_url=f"http://{stack.addresses.gateway}/v1", timeout=60) as client:
        body = {"id": "added", "checkpoint": "/no/such", "examples": ["Send letter 0."]}
        refused = client.post("/adapters", json=body)
        assert (refused.status_code, "/no/such" in refused.text) == (400, True)
        added = client.post("/adapters", json=body | {"checkpoint": str(models.adapters / "a0")})
        assert (added.status_code, added.json()["base_model"]) == (201, "Qwen2-VL-tiny")
        matched = client.post("/adapters/match", json={"prompt": "Send letter 0.", "include": ["added"]}).json()
        assert [match["id"] for match in matched["data"]] == ["added"]
        assert client.delete("/adapters/added").json()["deleted"]


@pytest.mark.timeout(180)
def test_evaluation_runs_and_reports(stack: LocalStack, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def commands_of_guide() -> list[str]:
    """Return the commands that docs/from_the_study.md gives in place of the study's."""
    guide = (Path(__file__).parents[2] / "docs" / "from_the_study.md").read_text(encoding="utf-8")
    table = guide.partition("## Commands")[2].partition("## What")[0]
    return re.findall(r"`loraretriever ((?:study|evaluate) --?[^`]*|evaluate \w+ [^`]*)`", table)


def test_guide_has_commands() -> None:
    assert len(commands_of_guide()) == 7


@pytest.mark.timeout(180)
@pytest.mark.parametrize("command", commands_of_guide())
def test_commands_of_studys_guide_run(
    stack: LocalStack,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    folder = data / "guide"
    (folder / "data" / "apps").mkdir(parents=True, exist_ok=True)
    episodes = write_episodes(folder / "data").read_text(encoding="utf-8")
    for name in ("example.jsonl", "Val_100.jsonl"):
        (folder / "data" / name).write_text(episodes, encoding="utf-8")
    write_episodes(folder / "data" / "apps")
    result = {"episode_id": "1", "mode": "step", "num_steps": 1, "ground_truths": ["Scroll up"]}
    (folder / "results.jsonl").write_text(json.dumps(result | {"predictions": ["Scroll up"]}), encoding="utf-8")
    monkeypatch.chdir(folder)
    short = [] if "results.jsonl" in command else ["--max-new-tokens", "4"]
    target = ["--json", "--orchestrator-target", stack.addresses.orchestrator]
    assert run([*command.split(), *short, *target]) == 0
    shown = json.loads(capsys.readouterr().out)
    if short:
        assert shown["failed_samples"] == 0
        assert shown["recorded_samples"] == (2 if command.startswith("study") else 4)


@pytest.mark.timeout(180)
def test_study_prints_scores_of_actions_and_of_whole_rows(
    stack: LocalStack, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_episodes(data / "whole_rows")
    words = ["--merge_method", "fusion", "--top_k", "2", "--max_new_tokens", "4"]
    assert run(["study", "--test_data", str(file), *words, "--orchestrator-target", stack.addresses.orchestrator]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"\blegacy_row\b", shown)
    assert re.search(r"\blegacy\b", shown)


@pytest.mark.timeout(180)
def test_second_stack_in_same_folder_is_refused(stack: LocalStack, models: Models) -> None:
    work_dir = stack.work_dir
    with pytest.raises(ConfigurationError, match=rf"tiers already run in .* \(process {os.getpid()}\)"):
        LocalStack(plan_of(models, work_dir)).__enter__()
    stack.check()


@dataclass(frozen=True)
class Stop:
    """A signal, whether it is sent to the process group, and whether SIGINT was ignored at start."""

    number: signal.Signals
    status: int
    to_group: bool = False
    ignored: bool = False


@pytest.mark.parametrize(
    "stop",
    [
        Stop(signal.SIGINT, 130, to_group=True),
        Stop(signal.SIGINT, 130),
        Stop(signal.SIGINT, 130, ignored=True),
        Stop(signal.SIGHUP, 129),
    ],
    ids=["ctrl-c", "interrupt", "interrupt-of-background-job", "hang-up"],
)
def test_signal_while_starting_leaves_nothing_running(models: Models, tmp_path: Path, stop: Stop) -> None:
    process = start(up(models, tmp_path / "up", "--free-ports"), tmp_path, ignore_interrupt=stop.ignored)
    read_until(process, "redis ready")
    assert processes_naming(tmp_path / "up")
    (os.killpg if stop.to_group else os.kill)(process.pid, stop.number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == stop.status, output
    assert "Traceback" not in output
    assert_nothing_runs_in(tmp_path / "up")


@pytest.mark.timeout(180)
def test_stop_signal_ends_every_tier(models: Models, tmp_path: Path) -> None:
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
def test_killed_worker_is_restarted_and_any_other_dead_tier_ends_the_stack(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, work_dir = write_episodes(tmp_path / "data"), tmp_path / "up"
    process = start(up(models, work_dir, "--free-ports"), tmp_path)
    output = read_until(process, "running; register adapters")
    state = read_state(work_dir)
    assert state is not None
    for tier, address in (("RETRIEVAL", state.retrieval), ("ORCHESTRATOR", state.orchestrator)):
        line = f"export LORARETRIEVER_CLIENT_{tier}_TARGET={address}"
        assert line in output
    os.kill(pid_of(work_dir, "worker"), signal.SIGKILL)
    assert "worker died and will be restarted" in read_until(process, "worker died")
    words = ["--strategy", "base", "--num-samples", "1", "--max-new-tokens", "2"]
    assert run(["evaluate", "run", str(file), *words, "--orchestrator-target", state.orchestrator]) == 0
    os.kill(pid_of(work_dir, "generation"), signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "error: generation was ended by SIGKILL" in output
    assert f"jobs are kept and continue when the stack is started again in {work_dir}" in output
    assert_nothing_runs_in(work_dir)


def test_tiers_end_when_the_command_is_killed(models: Models, tmp_path: Path) -> None:
    process = start(up(models, tmp_path / "up", "--free-ports"), tmp_path)
    read_until(process, "redis ready")
    process.kill()
    process.communicate()
    assert_nothing_runs_in(tmp_path / "up", within_s=30)


def test_tier_that_cannot_start_is_named_with_its_reason(models: Models, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    process = start(up(models, tmp_path / "up", "--free-ports", "--embedder-path", str(broken)), tmp_path)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2, output
    assert "error: retrieval ended with status 2 while starting; " in output
    assert str(broken) in output
    assert "Traceback" not in output
    assert_nothing_runs_in(tmp_path / "up")


def test_port_in_use_is_named_before_anything_starts(models: Models, tmp_path: Path) -> None:
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
