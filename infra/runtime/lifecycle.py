"""Stop signals and ready files: how a server process says that it serves, and hears that it should end."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from infra.contract.errors import ConfigurationError

_on_stop: list[Callable[[], None]] = []
_stopping = False


def install_stop_signals() -> None:
    """Make SIGTERM and SIGINT end this process in good order: exit code 0, running calls finished.

    Before anything serves, the first signal ends the process at once; a second SIGINT always does.
    """
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)


@contextmanager
def on_stop(callback: Callable[[], None]) -> Iterator[None]:
    """Call `callback` when a stop signal comes. It runs within the signal handler: it may only hand the news on."""
    _on_stop.append(callback)
    try:
        yield
    finally:
        _on_stop.remove(callback)


@contextmanager
def ready_file(path: Path | None, address: str) -> Iterator[None]:
    """Keep a file that says where this process serves: {"address": "127.0.0.1:50051", "pid": 4242}."""
    if path is None:
        yield
        return
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps({"address": address, "pid": os.getpid()}) + "\n", encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise ConfigurationError(f"ready_file {path} cannot be written: {error.strerror}") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _stop(number: int, _frame: FrameType | None) -> None:
    global _stopping  # noqa: PLW0603 - signals are the process's, not anyone's
    if _stopping and number == signal.SIGINT:
        os._exit(128 + number)
    _stopping = True
    if not _on_stop:
        raise SystemExit(0)
    for callback in list(_on_stop):
        callback()
