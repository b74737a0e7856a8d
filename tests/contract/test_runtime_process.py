"""A tier as a process: its start, its announced address, and its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from loraretriever.v1 import generation_service_pb2 as pb

from infra.contract.errors import UnavailableError
from infra.runtime.channel import ChannelOptions, sync_channel
from infra.runtime.error_table import translated
from tests.support.servers.runtime_probe import generate, stub_of

TIER = '''
import asyncio, contextlib, sys, time
from pydantic import Field
from pydantic_settings import SettingsConfigDict
from loraretriever.v1 import generation_service_pb2_grpc as stubs
from infra.contract.errors import CheckpointError, UnavailableError
from infra.runtime.main import run_tier
from infra.runtime.lifecycle import entered_on_thread
from infra.runtime.server import GrpcServer
from infra.runtime.settings import TierSettings
from tests.support.servers.runtime_probe import SERVICE, Probe, nothing, stub_of

class ProbeSettings(TierSettings):
    """A tier made for a test."""
    model_config = SettingsConfigDict(env_prefix="LORARETRIEVER_PROBE_")
    behave: str = Field("serve", description="serve, or how to fail")

def serve(settings):
    options = settings.server
    match settings.behave:
        case "checkpoint":
            raise CheckpointError("model folder /nowhere does not exist;\\ngive --model-path")
        case "unavailable":
            raise UnavailableError("Qdrant does not answer")
        case "bug":
            raise RuntimeError("a bug")
        case "load":
            load()
        case "load beside loop":
            asyncio.run(load_beside_loop())
        case "serve":
            asyncio.run(serve_probe(options))

def load():
    sys.stderr.write("loading\\n"); sys.stderr.flush()
    while True:
        time.sleep(0.01)

@contextlib.contextmanager
def loading():
    load()
    yield

async def load_beside_loop():
    async with entered_on_thread(loading()):
        pass

async def serve_probe(options):
    server = GrpcServer(options)
    server.add(Probe(nothing), stubs.add_GenerationServiceServicer_to_server, SERVICE)
    await server.serve()
    sys.stderr.write("finished\\n")

run_tier(serve, ProbeSettings)
'''
ROOT = Path(__file__).parents[2]


@contextmanager
def tier(*flags: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LORARETRIEVER_")}
    process = subprocess.Popen(
        [sys.executable, "-c", TIER, *flags],
        env={**clean, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "proto")]), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=30)
    return process.returncode, errors


def ready(path: Path, process: subprocess.Popen[str]) -> Any:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return json.loads(path.read_text())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_signal_ends_tier_gracefully(number: signal.Signals, tmp_path: Path) -> None:
    path = tmp_path / "ready.json"
    with tier("--address", "127.0.0.1:0", "--ready-file", str(path)) as process:
        content = ready(path, process)
        assert content["pid"] == process.pid
        assert generate("sync", ChannelOptions(content["address"])) == "ab"
        process.send_signal(number)
        code, errors = ended(process)
    assert code == 0, errors
    assert errors.endswith("finished\n")
    assert "Traceback" not in errors
    assert not path.exists()


@pytest.mark.parametrize("behave", ["load", "load beside loop"])
def test_stop_signal_while_model_loads_ends_tier_at_once(behave: str) -> None:
    with tier("--behave", behave) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "loading\n"
        process.terminate()
        code, errors = ended(process)
    assert (code, errors) == (0, "")


STOPPED_IN_DESTRUCTOR = """
import os, signal, time
from infra.runtime import lifecycle

class Dying:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):
            pass  # The handler runs here, and Python drops the exception that it raises.

lifecycle._MAX_EXIT_S = 1
lifecycle.install_stop_signals()
dying = Dying()
del dying
while True:
    time.sleep(1)
"""


def test_stop_signal_whose_exception_is_dropped_ends_tier_too() -> None:
    stopped = subprocess.run(
        [sys.executable, "-c", STOPPED_IN_DESTRUCTOR], capture_output=True, text=True, timeout=60, check=False
    )
    assert "Exception ignored" in stopped.stderr
    assert stopped.returncode == 0


@pytest.mark.parametrize(
    ("behave", "code", "line"),
    [
        ("checkpoint", 2, "loraretriever probe: model folder /nowhere does not exist; give --model-path\n"),
        ("unavailable", 1, "loraretriever probe: Qdrant does not answer\n"),
    ],
)
def test_tier_that_cannot_start_gives_reason_in_one_line(behave: str, code: int, line: str) -> None:
    with tier("--behave", behave) as process:
        assert ended(process) == (code, line)


def test_bug_ends_tier_with_traceback() -> None:
    with tier("--behave", "bug", LORARETRIEVER_PROBE_LOG_FORMAT="json") as process:
        code, errors = ended(process)
    assert code == 1
    event = json.loads(errors)
    assert event["event"] == "tier_failed"
    assert event["service"] == "probe"
    assert "a bug" in json.dumps(event["exception"])


def test_port_in_use_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    path = tmp_path / "ready.json"
    with tier("--address", "127.0.0.1:0", "--ready-file", str(path)) as first:
        address = ready(path, first)["address"]
        with tier(LORARETRIEVER_PROBE_ADDRESS=address) as second:
            code, errors = ended(second)
        assert code == 2
        assert errors == (
            f"loraretriever probe: cannot listen on {address}: address already in use; "
            "choose another --address, or port 0 for a free one\n"
        )
        assert generate("sync", ChannelOptions(address)) == "ab", "the first one is not disturbed"


def test_wrong_setting_is_one_line_and_exit_code_2() -> None:
    with tier("--behaviour", "serve") as process:
        assert ended(process) == (
            2,
            "loraretriever probe: unknown setting --behaviour; did you mean --behave? See --help\n",
        )
    with tier(LORARETRIEVER_PROBE_ADRESS="x") as process:
        code, errors = ended(process)
    assert code == 2
    assert "LORARETRIEVER_PROBE_ADRESS in the environment; did you mean LORARETRIEVER_PROBE_ADDRESS?" in errors


def test_help_is_printed_and_nothing_starts() -> None:
    with tier("--help") as process:
        output, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
    assert "--ready-file PATH" in output


def until_served(stub: Any) -> str:
    """Return the text of the first call that is served. On a busy machine pings time out, and calls with them."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with translated():
                return str(stub.Generate(pb.GenerateRequest(), wait_for_ready=True).text)
        except UnavailableError:
            if time.monotonic() > deadline:
                raise


@pytest.mark.timeout(300)
def test_unresponsive_server_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "ready.json"
    with tier("--address", "127.0.0.1:0", "--ready-file", str(path)) as process:
        options = ChannelOptions(
            ready(path, process)["address"],
            default_timeout_s=100,
            max_attempts=1,
            # Servers end a connection with pings less than 5 s apart ("too_many_pings"), and the call with it.
            keepalive_time_s=6,
            ping_timeout_s=3,
            health_check=False,
        )
        with sync_channel(options) as channel:
            stub = stub_of(channel)
            assert until_served(stub) == "ab"
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)  # Until then its threads may still answer.
            # Without detection the deadline would end the call, with a DeadlineError.
            with pytest.raises(UnavailableError), translated():
                stub.Generate(pb.GenerateRequest())
            process.send_signal(signal.SIGCONT)
            assert until_served(stub) == "ab", "the channel reconnects"
