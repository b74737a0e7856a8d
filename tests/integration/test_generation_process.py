"""`python -m generation_service` as a process: it starts, answers, and ends on a signal."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from loraretriever.v1 import generation_service_pb2 as pb
from loraretriever.v1.generation_service_pb2_grpc import GenerationServiceStub

from infra.contract.prompt import Prompt
from infra.runtime.wire import prompt_to_proto
from tests.support.checkpoints.qwen2_vl import write_qwen2_vl


@contextmanager
def started(*flags: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "generation_service", "--address", "127.0.0.1:0", "--device", "cpu", *flags],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def address_in(ready: Path, process: subprocess.Popen[str]) -> str:
    until = monotonic() + 100
    while not ready.exists():
        assert process.poll() is None, process.communicate()[1]
        assert monotonic() < until
        sleep(0.05)
    return str(json.loads(ready.read_text())["address"])


def test_process_serves_until_signal_and_cleans_up(tmp_path: Path) -> None:
    base = write_qwen2_vl(tmp_path / "base")
    ready = tmp_path / "ready.json"
    with started("--model-path", str(base), "--ready-file", str(ready)) as process:
        with grpc.insecure_channel(address_in(ready, process)) as channel:
            stub = GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
            health = health_pb2_grpc.HealthStub(channel)
            service = "loraretriever.v1.GenerationService"
            status = health.Check(health_pb2.HealthCheckRequest(service=service)).status
            assert status == health_pb2.HealthCheckResponse.SERVING
            asked = pb.GenerateRequest(
                prompt=prompt_to_proto(Prompt.of("hello")), decoding=pb.Decoding(max_new_tokens=4)
            )
            assert stub.Generate(asked, timeout=30).usage.completion_tokens > 0
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=30)
        assert process.returncode == 0, log
        assert "cache_mib" in log
        assert not ready.exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model-path", "nowhere"], ["nowhere", "--model-path"]),
        (["--model-path", "x", "--max-pixel", "3"], ["--max-pixels"]),
    ],
    ids=["missing folder", "unknown flag"],
)
def test_failed_start_prints_its_reason_in_one_line(flags: list[str], words: list[str]) -> None:
    with started(*flags) as process:
        _, log = process.communicate(timeout=100)
    last = log.strip().splitlines()[-1]
    assert process.returncode == 2
    assert all(word in last for word in words)
    assert "Traceback" not in log
