"""The command line as a process, tiny models for its tiers, and a check for processes that it left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.checkpoints.jina_v4 import tiny_jina
from tests.support.harness.generation_stack import write_model_fixture

DEADLINE_S = 90.0


@dataclass(frozen=True)
class Models:
    """Tiny random checkpoints, and adapters `a0`, `a1` for the base model."""

    base: Path
    embedder: Path
    adapters: Path


def write_models(folder: Path) -> Models:
    """Write a base model, two adapters of it and an embedder below `folder`."""
    world = write_model_fixture(folder, adapters=2)
    return Models(world.base, tiny_jina().write(folder / "jina_v4"), world.roots)


@contextmanager
def dispositions(*, ignore_interrupt: bool = False) -> Iterator[None]:
    """Start processes within the block with default signal dispositions, or with SIGINT ignored.

    A process inherits ignored signals: tests that run under `nohup` or as a background job would pass on theirs.
    """
    handlers = {signal.SIGINT: signal.SIG_IGN if ignore_interrupt else signal.default_int_handler}
    handlers |= {signal.SIGHUP: signal.SIG_DFL, signal.SIGTERM: signal.SIG_DFL}
    former = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def start(arguments: list[str], cwd: Path, *, ignore_interrupt: bool = False) -> subprocess.Popen[str]:
    """Start `loraretriever ARGUMENTS` in its own process group, as a terminal would, or with SIGINT ignored."""
    with dispositions(ignore_interrupt=ignore_interrupt):
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli", *arguments],
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """Return the output of the process up to a line that contains `words`."""
    assert process.stdout is not None
    output = ""
    for line in process.stdout:
        output += line
        if words in line:
            return output
    raise AssertionError(f"{words!r} was never written:\n{output}")


def processes_naming(folder: Path) -> list[str]:
    """Return the processes whose command line names `folder`: every tier's and the Redis's does."""
    listed = subprocess.run(["ps", "-e", "-ww", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
    own = str(os.getpid())
    return [line for line in listed.splitlines() if str(folder) in line and line.split()[0] != own]


def assert_nothing_runs_in(folder: Path, within_s: float = 5.0) -> None:
    """Fail if a process that names `folder` still exists after `within_s` seconds.

    On a busy machine a killed process is listed for a moment longer.
    """
    deadline = time.monotonic() + within_s
    while (left := processes_naming(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left
