"""The parent's side of a peer process: start it, ask it, stop it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

_STOP_S = 20
"""How long a peer may take to exit after its stdin is closed. vLLM stops its engine process in that time."""

_ERROR = re.compile(r"[\w.]+(Error|Exception|Exit|Interrupt)\b")
"""The line of a traceback that names the exception. What a library prints while it shuts down follows it."""


class PeerError(Exception):
    """A peer that cannot be measured, with the reason."""


class PeerProcess:
    """A worker (peer_worker.py) in its own process, session and environment. stderr goes to a log file."""

    def __init__(self, command: Sequence[str], log: Path, threads: int) -> None:
        self._log = log
        with log.open("w", encoding="utf-8") as stderr:
            self._process = subprocess.Popen(
                ["env", *_environment(threads), *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,
            )

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def wait_until_ready(self) -> dict[str, str]:
        """Return the versions of the peer's libraries once its model is loaded. Raises PeerError."""
        ready: dict[str, str] = self._reply()["ready"]
        return ready

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send one request and return its reply. Raises PeerError if the peer fails or has ended."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise PeerError(self._last_words()) from error
        return self._reply()

    def close(self) -> None:
        """Close stdin, wait for the exit, and kill the process's session if it does not come."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process.stdout.close()

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise PeerError(self._last_words())
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise PeerError(reply["error"])
        return reply

    def _last_words(self) -> str:
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if _ERROR.match(line)]
        return f"the process ended: {(errors or lines or ['it printed nothing'])[-1][:300]}"


def _environment(threads: int) -> list[str]:
    """Return variables that give every peer the same number of threads.

    By default vLLM reserves a core for its front end and pins its threads, so that it would use one of two cores.
    Its KV cache is limited to 1 GiB.
    """
    return [f"OMP_NUM_THREADS={threads}", "VLLM_CPU_OMP_THREADS_BIND=nobind", "VLLM_CPU_KVCACHE_SPACE=1"]
