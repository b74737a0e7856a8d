"""The command line as a process, tiny models for its tiers, and what it must not leave behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
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


def start(arguments: list[str], cwd: Path) -> subprocess.Popen[str]:
    """Start `loraretriever ARGUMENTS` in a process group of its own, as a terminal would."""
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
    """Return what the process writes up to a line that holds `words`."""
    assert process.stdout is not None
    read = ""
    for line in process.stdout:
        read += line
        if words in line:
            return read
    raise AssertionError(f"{words!r} was never written:\n{read}")


def processes_naming(folder: Path) -> list[str]:
    """Return the processes whose command line names `folder`: every tier's and the Redis's does."""
    listed = subprocess.run(["ps", "-e", "-ww", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
    own = str(os.getpid())
    return [line for line in listed.splitlines() if str(folder) in line and line.split()[0] != own]


def assert_nothing_runs_in(folder: Path, within_s: float = 5.0) -> None:
    """Fail when a process that names `folder` is still there after `within_s` seconds: on a busy machine one that was
    killed is listed for a moment longer.
    """
    deadline = time.monotonic() + within_s
    while (left := processes_naming(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left
