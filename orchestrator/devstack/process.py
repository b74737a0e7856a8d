"""Child programs, each in its own process group: start, wait until ready, restart, stop with all their children."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from infra.contract.errors import ConfigurationError, LoraRetrieverError, UnavailableError
from orchestrator.devstack import parent_watch

#: How often a child's state is looked at: below what a user notices, at no measurable load.
POLL_S = 0.05
#: Lines of a log that an error quotes: a traceback's end fits.
_LOG_LINES = 12
_EXIT_CONFIGURATION = 2
#: How infra.runtime.main begins the line with the reason why a tier could not start.
_REASON_PREFIX = "loraretriever "
#: First pause before a restart; it doubles with every further death.
_FIRST_PAUSE_S = 0.5
#: A program that ran this long is not considered to be crashing in a loop.
SHORT_LIFE_S = 60.0
#: Deaths in a row after which a program is given up: with the pauses above, after about 8 s.
MAX_DEATHS = 5


@dataclass
class StopSignal:
    """The number of the signal that interrupted a block, None without one or for SIGINT."""

    number: int | None = None


@dataclass
class StopNow:
    """Whether to stop waiting for programs to end by themselves."""

    is_set: bool = False


class RestartPolicy:
    """When a program that died is restarted: after a pause that doubles, up to MAX_DEATHS short lives in a row."""

    def __init__(self) -> None:
        self._deaths = 0
        self._due_at = 0.0

    @property
    def is_due(self) -> bool:
        """Whether the pause after the last death is over."""
        return time.monotonic() >= self._due_at

    def allows_restart(self, started_at: float) -> bool:
        """Count the death of a program started at `started_at` (time.monotonic) and return whether to restart it.

        A program that ran for SHORT_LIFE_S starts a new row of deaths.
        """
        now = time.monotonic()
        self._deaths = self._deaths + 1 if now - started_at < SHORT_LIFE_S else 1
        self._due_at = now + _FIRST_PAUSE_S * 2 ** (self._deaths - 1)
        return self._deaths < MAX_DEATHS


@dataclass(frozen=True)
class Program:
    """`python -m module arguments --ready-file FILE`, which is ready once the file exists.

    `threads` is how many it computes with, unless OMP_NUM_THREADS is in the environment of the stack.
    """

    name: str
    module: str
    arguments: tuple[str, ...] = ()
    threads: int = 1


@dataclass(frozen=True)
class Ready:
    """The content of a program's ready file."""

    address: str
    pid: int
    gateway: str = ""


class Child:
    """A running program, which ends when this process does. Its output goes to `directory/logs/NAME.log`.

    `restarted` appends to the log of the program's former run instead of replacing it.
    """

    def __init__(
        self, program: Program, directory: Path, environment: Mapping[str, str], *, restarted: bool = False
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
        with self.log.open("ab" if restarted else "wb") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                [*command, "--ready-file", str(self._ready_file)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={"OMP_NUM_THREADS": str(program.threads), **environment},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process id, which is also the id of its group."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """The exit status: None while the program runs, negative if a signal ended it."""
        return self._process.poll()

    def wait_ready(self, timeout_s: float) -> Ready:
        """Wait for the ready file and return its content. Raises the error of `failure` if the program ends first."""
        deadline = time.monotonic() + timeout_s
        while not self._ready_file.exists():
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(POLL_S)
                raise self.failure("while starting")
            if time.monotonic() > deadline:
                raise UnavailableError(f"{self.name} was not ready after {timeout_s:.0f} s; {self.log_tail()}")
        content = json.loads(self._ready_file.read_text(encoding="utf-8"))
        return Ready(**content)

    def failure(self, when: str = "") -> LoraRetrieverError:
        """Return the error of a program that ended by itself: its exit status, and its reason or the end of its log."""
        status = self.exit_status
        how = f"was ended by {signal.Signals(-status).name}" if status and status < 0 else f"ended with status {status}"
        kind = ConfigurationError if status == _EXIT_CONFIGURATION else UnavailableError
        return kind(f"{self.name} {how} {when}".rstrip() + f"; {self.log_tail()}")

    def log_tail(self) -> str:
        """Return the reason that the program logged for its end, or else the last lines of its log."""
        lines = self.log.read_bytes()[self._log_start :].decode(errors="replace").splitlines()
        reason = next((line for line in reversed(lines) if line.startswith(_REASON_PREFIX)), None)
        if reason is not None:
            return f"{reason.partition(': ')[2]} (log: {self.log})"
        if not lines:
            return f"its log {self.log} is empty"
        return f"the end of its log {self.log}:\n" + "\n".join(f"  {line}" for line in lines[-_LOG_LINES:])

    def stop(self, grace_s: float, stop_now: StopNow) -> None:
        """End the program: SIGTERM, then SIGKILL to its group after `grace_s` seconds or once `stop_now` is set."""
        with contextlib.suppress(ProcessLookupError):
            if self.exit_status is None:
                self._process.terminate()
        deadline = time.monotonic() + grace_s
        while self.exit_status is None and time.monotonic() < deadline and not stop_now.is_set:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(POLL_S)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._ready_file.unlink(missing_ok=True)


@contextlib.contextmanager
def stop_signals_interrupt() -> Iterator[StopSignal]:
    """Raise KeyboardInterrupt in the main thread on SIGINT, SIGTERM and SIGHUP within the block.

    Yields the record of the signal received. SIGINT interrupts even if this process inherited it ignored, as background
    jobs of a non-interactive shell do: the terminal's Ctrl-C does not reach them, so a SIGINT was sent to this process
    on purpose. An ignored SIGHUP stays ignored: that is how `nohup` keeps a command running after its terminal closes.
    """
    received = StopSignal()

    def interrupt(number: int, _: FrameType | None) -> None:
        received.number = number
        raise KeyboardInterrupt

    # asyncio.run cancels its main task on SIGINT, but only where Python's own handler is installed.
    interrupt_handler = signal.default_int_handler if _is_ignored(signal.SIGINT) else signal.getsignal(signal.SIGINT)
    with _handlers({signal.SIGINT: interrupt_handler, **dict.fromkeys(_terminations(), interrupt)}):
        yield received


@contextlib.contextmanager
def stop_signals_end_waiting() -> Iterator[StopNow]:
    """Yield a flag that SIGINT, SIGTERM and SIGHUP set within the block instead of interrupting it."""
    stop_now = StopNow()

    def set_flag(*_: object) -> None:
        stop_now.is_set = True

    with _handlers(dict.fromkeys((signal.SIGINT, *_terminations()), set_flag)):
        yield stop_now


def _terminations() -> tuple[signal.Signals, ...]:
    """Return the signals that end this process besides SIGINT: SIGTERM, and SIGHUP unless it is ignored."""
    return (signal.SIGTERM,) if _is_ignored(signal.SIGHUP) else (signal.SIGTERM, signal.SIGHUP)


def _is_ignored(number: signal.Signals) -> bool:
    return signal.getsignal(number) is signal.SIG_IGN


@contextlib.contextmanager
def _handlers(handlers: Mapping[signal.Signals, Any]) -> Iterator[None]:
    """Install signal handlers within the block. Only the main thread can: elsewhere this does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
