"""The benchmark against other engines: its processes, its judge, and one run on a tiny model without vLLM."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.support.checkpoints.causal import write_causal

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
WORKER = f"""
import sys
sys.path.insert(0, {str(BENCHMARKS)!r})
from peer_worker import ReplyStream
replies = ReplyStream()
print("a library that prints")
def handle(message):
    if message["do"] == "raise":
        raise ValueError("no such adapter")
    if message["do"] == "die":
        sys.stderr.write("MemoryError: out of memory\\nthe library shuts down\\n")
        sys.exit(1)
    return {{"echo": message["do"]}}
replies.serve(handle, "torch")
"""


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import peer_process

    return peer_process


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import peer_answers

    return peer_answers


class Reference:
    """Answers 1, 2, 3 to everything; the logits of any two tokens are `gap` apart."""

    def __init__(self, gap: float) -> None:
        self.gap = gap
        self.questions: list[Any] = []

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        if "candidates" in message:
            self.questions.append(message)
            return {"gap": self.gap}
        return {"answers": [[1, 2, 3]]}


def requests(count: int) -> list[dict[str, Any]]:
    return [{"tokens": [7, 8], "adapters": {"a0": 1.0}} for _ in range(count)]


def test_worker_replies_despite_prints_and_errors(processes: ModuleType, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WORKER]
    with processes.PeerProcess(command, tmp_path / "log", threads=1) as peer:
        assert peer.wait_until_ready()["torch"]
        with pytest.raises(processes.PeerError, match="ValueError: no such adapter"):
            peer.ask({"do": "raise"})
        assert peer.ask({"do": "answer"}) == {"echo": "answer"}
        with pytest.raises(processes.PeerError, match="the process ended: MemoryError: out of memory"):
            peer.ask({"do": "die"})
        with pytest.raises(processes.PeerError, match="out of memory"):
            peer.ask({"do": "answer"})
    assert "a library that prints" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("given", "summary"),
    [
        ([[1, 2, 3], [1, 2, 3]], "2 of 2 token for token"),
        ([[1, 2, 3], [1, 9, 9]], "1 of 2 token for token, the others by up to 5e-04 of the largest logit"),
    ],
)
def test_judge_counts_equal_answers(answers: ModuleType, given: Sequence[list[int]], summary: str) -> None:
    reference = Reference(gap=5e-4)
    assert answers.Judge(reference, 3, 1e-3).compare(given, requests(2)) == summary
    for question in reference.questions:
        assert question == {"tokens": [7, 8, 1], "adapters": {"a0": 1.0}, "candidates": [9, 2]}


@pytest.mark.parametrize(
    ("given", "message"), [([[1, 9, 9]], "1 of 1 answers differ"), ([[1, 2]], "answer 0 has 2 tokens instead of 3")]
)
def test_judge_refuses_other_answers(
    answers: ModuleType, processes: ModuleType, given: Sequence[list[int]], message: str
) -> None:
    with pytest.raises(processes.PeerError, match=message):
        answers.Judge(Reference(gap=0.1), 3, 1e-3).compare(given, requests(1))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_peers_benchmark_runs_without_vllm(tmp_path: Path) -> None:
    model = write_causal(tmp_path / "tiny-llama", "llama", {"tie_word_embeddings": True})
    sizes = "--adapters 4 --concurrency 1 3 --new-tokens 3 --repetitions 1 --threads 1 --json"
    script = str(BENCHMARKS / "bench_peers.py")
    command = [sys.executable, script, "--model", str(model), "--vllm-python", "/nonexistent/python", *sizes.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["measurements"]["vllm-base: skipped"] == "/nonexistent/python does not exist: run make peers"
    for name in ("engine_base", "engine_one", "engine_three", "transformers_base", "peft_one"):
        assert result["measurements"][f"{name}: answers equal"].startswith("3 of 3 token for token")
        assert result["measurements"][f"{name} 3: tokens/s"] > 0
        assert result["measurements"][f"{name} 3: first token, s"] > 0
    assert result["ratios"]["engine_three_over_engine_base_3"] > 0
    assert result["bars"].keys() == {"engine_base_over_transformers_base_1"}


def test_missing_model_names_remedy(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "bench_peers.py"), "--model", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "is not a model folder: run make demo-text, or give --model FOLDER" in done.stderr
