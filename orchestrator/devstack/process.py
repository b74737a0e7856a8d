"""Programs of this machine, each in a process group of its own: started, waited for, stopped with all they started."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from infra.contract.errors import ConfigurationError, LoraRetrieverError, UnavailableError
from orchestrator.devstack import parent_watch

POLL_S = 0.05
LOG_LINES = 12
EXIT_CONFIGURATION = 2
REASON = "loraretriever "
"""How infra.runtime.main begins the line that says why a tier could not start."""


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, raised like Ctrl-C so that everything under way is left in order."""

    def __init__(self, signal_number: int) -> None:
        super().__init__()
        self.signal_number = signal_number


@dataclass(frozen=True)
class Program:
    """`python -m module arguments`; it is told `--ready-file` and is ready when that file is there."""

    name: str
    module: str
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ready:
    """What a program's ready file says."""

    address: str
    pid: int


@dataclass
class Hurry:
    """Whether to wait no longer."""

    now: bool = False


class Child:
    """One running program, which dies with this process. Its output goes to `directory/logs/NAME.log`.

    `again` starts a program that ended anew, its log after what it had said before.
    """

    def __init__(
        self, program: Program, directory: Path, environment: Mapping[str, str], *, again: bool = False
    ) -> None:
        self.name = program.name
        self.program = program
        self.started_at = time.monotonic()
        self.log = directory / "logs" / f"{program.name}.log"
        self._ready_file = directory / "ready" / f"{program.name}.json"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._ready_file.parent.mkdir(parents=True, exist_ok=True)
        self._ready_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", parent_watch.__name__, program.module, *program.arguments]
        with self.log.open("ab" if again else "wb") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                [*command, "--ready-file", str(self._ready_file)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process id, which is also the id of its group."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._process.poll()

    def wait_ready(self, timeout_s: float) -> Ready:
        """Return what the ready file says. Raises what `failure` returns as soon as the program ends before that."""
        deadline = time.monotonic() + timeout_s
        while not self._ready_file.exists():
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(POLL_S)
                raise self.failure("while starting")
            if time.monotonic() > deadline:
                raise UnavailableError(f"{self.name} was not ready after {timeout_s:.0f} s; {self.last_words()}")
        content = json.loads(self._ready_file.read_text(encoding="utf-8"))
        return Ready(content["address"], content["pid"])

    def failure(self, when: str = "") -> LoraRetrieverError:
        """Return the error of a program that ended by itself: its status, and what it said last."""
        status = self.exit_status
        how = f"was ended by {signal.Signals(-status).name}" if status and status < 0 else f"ended with status {status}"
        kind = ConfigurationError if status == EXIT_CONFIGURATION else UnavailableError
        return kind(f"{self.name} {how} {when}".rstrip() + f"; {self.last_words()}")

    def last_words(self) -> str:
        """Return why the program ended, when it said so in a line of its own, or else the end of its log."""
        lines = self.log.read_bytes()[self._log_start :].decode(errors="replace").splitlines()
        reason = next((line for line in reversed(lines) if line.startswith(REASON)), None)
        if reason is not None:
            return f"{reason.partition(': ')[2]} (log: {self.log})"
        if not lines:
            return f"its log {self.log} is empty"
        return f"the end of its log {self.log}:\n" + "\n".join(f"  {line}" for line in lines[-LOG_LINES:])

    def stop(self, grace_s: float, hurry: Hurry) -> None:
        """End the program: SIGTERM, then SIGKILL to its group after `grace_s` seconds or once `hurry` says so."""
        with contextlib.suppress(ProcessLookupError):
            if self.exit_status is None:
                self._process.terminate()
        deadline = time.monotonic() + grace_s
        while self.exit_status is None and time.monotonic() < deadline and not hurry.now:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(POLL_S)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._ready_file.unlink(missing_ok=True)


@contextlib.contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Raise Terminated in the main thread on SIGTERM and SIGHUP within the block."""

    def raise_terminated(number: int, _: FrameType | None) -> None:
        raise Terminated(number)

    with _handlers((signal.SIGTERM, signal.SIGHUP), raise_terminated):
        yield


@contextlib.contextmanager
def hurried_by_signals() -> Iterator[Hurry]:
    """Yield a flag that SIGINT, SIGTERM and SIGHUP set within the block instead of interrupting it."""
    hurry = Hurry()

    def set_hurry(*_: object) -> None:
        hurry.now = True

    with _handlers((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), set_hurry):
        yield hurry


@contextlib.contextmanager
def _handlers(numbers: Sequence[signal.Signals], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler_before in former.items():
            signal.signal(number, handler_before)
