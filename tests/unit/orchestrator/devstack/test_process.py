from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.contract.errors import ConfigurationError, UnavailableError
from orchestrator.devstack.process import (
    MAX_DEATHS,
    SHORT_LIFE_S,
    Child,
    Program,
    RestartPolicy,
    StopNow,
    stop_signals_interrupt,
)
from tests.support.harness.cli_process import dispositions

SERVES = """
import json, os, subprocess, sys, signal
if "--with-child" in sys.argv:
    subprocess.Popen([sys.executable, "-c", "import signal; signal.signal(15, signal.SIG_IGN); signal.pause()"])
if "--stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
file = sys.argv[sys.argv.index("--ready-file") + 1]
with open(file + ".new", "w") as ready:
    json.dump({"address": "here", "pid": os.getpid()}, ready)
os.replace(file + ".new", file)
print("ready", flush=True)
while True:
    signal.pause()
"""
FAILS = """
import sys
print("error: model folder 'x' does not exist; give --model-path", file=sys.stderr)
sys.exit(int(sys.argv[1]))
"""
STARTER = """
import os, sys
from pathlib import Path
from orchestrator.devstack.process import Child, Program
child = Child(Program("fake", "fake_serves", ("--with-child",)), Path(sys.argv[1]), dict(os.environ))
print(child.wait_ready(30).pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "fake_serves.py").write_text(SERVES)
    (tmp_path / "fake_fails.py").write_text(FAILS)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}


@pytest.fixture
def started(tmp_path: Path, environment: dict[str, str]) -> Iterator[list[Child]]:
    children: list[Child] = []
    yield children
    for child in children:
        child.stop(0, StopNow())


def group_is_empty(pid: int, within_s: float = 10.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            os.killpg(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


def test_program_is_ready_when_its_file_exists(
    tmp_path: Path, environment: dict[str, str], started: list[Child]
) -> None:
    child = Child(Program("fake", "fake_serves"), tmp_path, environment)
    started.append(child)
    ready = child.wait_ready(30)
    assert (ready.address, ready.pid) == ("here", child.pid)
    assert os.getpgid(child.pid) == child.pid


@pytest.mark.parametrize("argument", ["--with-child", "--stubborn"])
def test_stopping_program_empties_its_process_group(
    tmp_path: Path, environment: dict[str, str], started: list[Child], argument: str
) -> None:
    child = Child(Program("fake", "fake_serves", (argument,)), tmp_path, environment)
    started.append(child)
    child.wait_ready(30)
    child.stop(0.3, StopNow())
    assert group_is_empty(child.pid)
    assert not list((tmp_path / "ready").iterdir())


def test_stop_now_ends_grace_period(tmp_path: Path, environment: dict[str, str], started: list[Child]) -> None:
    child = Child(Program("fake", "fake_serves", ("--stubborn",)), tmp_path, environment)
    started.append(child)
    child.wait_ready(30)
    before = time.monotonic()
    child.stop(60, StopNow(is_set=True))
    assert time.monotonic() - before < 10
    assert group_is_empty(child.pid)


@pytest.mark.parametrize(("status", "kind"), [(2, ConfigurationError), (1, UnavailableError)])
def test_program_that_ends_at_start_is_reported_with_its_log(
    tmp_path: Path, environment: dict[str, str], started: list[Child], status: int, kind: type[Exception]
) -> None:
    child = Child(Program("fake", "fake_fails", (str(status),)), tmp_path, environment)
    started.append(child)
    with pytest.raises(kind, match=r"(?s)fake ended with status .*model folder 'x' does not exist; give --model-path"):
        child.wait_ready(30)


def test_program_that_is_never_ready_is_reported(
    tmp_path: Path, environment: dict[str, str], started: list[Child]
) -> None:
    (tmp_path / "fake_sleeps.py").write_text("import signal; signal.pause()")
    child = Child(Program("fake", "fake_sleeps"), tmp_path, environment)
    started.append(child)
    with pytest.raises(UnavailableError, match="was not ready after"):
        child.wait_ready(0.2)


def test_program_and_its_children_end_when_parent_is_killed(tmp_path: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, "-c", STARTER, str(tmp_path)]
    starter = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert starter.stdout is not None
    assert starter.stdin is not None
    pid = int(starter.stdout.readline())
    starter.kill()
    starter.wait()
    starter.stdin.close()
    starter.stdout.close()
    assert group_is_empty(pid, within_s=30)


def test_restarted_program_appends_to_log_and_failure_quotes_its_own_part(
    tmp_path: Path, environment: dict[str, str], started: list[Child]
) -> None:
    (tmp_path / "fake_says.py").write_text("import sys; print('said', sys.argv[1])")
    for number in ("1", "2"):
        child = Child(Program("fake", "fake_says", (number,)), tmp_path, environment, restarted=number == "2")
        started.append(child)
        with pytest.raises(UnavailableError):
            child.wait_ready(30)
    assert child.log.read_text() == "said 1\nsaid 2\n"
    assert "said 2" in child.log_tail()
    assert "said 1" not in child.log_tail()


def test_repeated_deaths_end_restarts_and_a_long_life_resets_them() -> None:
    policy = RestartPolicy()
    assert policy.is_due
    long_ago = time.monotonic() - 2 * SHORT_LIFE_S
    for _ in range(2):
        assert all(policy.allows_restart(time.monotonic()) for _ in range(MAX_DEATHS - 2))
        assert not policy.is_due
        assert policy.allows_restart(long_ago)
    assert all(policy.allows_restart(time.monotonic()) for _ in range(MAX_DEATHS - 2))
    assert not policy.allows_restart(time.monotonic())


@pytest.fixture
def default_dispositions() -> Iterator[None]:
    with dispositions():
        yield


@pytest.mark.usefixtures("default_dispositions")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_stop_signal_interrupts_block_and_is_recorded(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), stop_signals_interrupt() as received:
        signal.raise_signal(number)
    assert received.number == number
    assert signal.getsignal(number) is before


@pytest.mark.usefixtures("default_dispositions")
def test_inherited_ignored_interrupt_still_interrupts_and_ignored_hangup_does_not() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stop_signals_interrupt():
        signal.raise_signal(signal.SIGHUP)
    with pytest.raises(KeyboardInterrupt), stop_signals_interrupt():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
