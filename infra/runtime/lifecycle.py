"""Start and stop of a server process: loading on a thread, stop signals, ready files."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import TypeVar

from infra.contract.errors import ConfigurationError

_T = TypeVar("_T")

#: How long a process that does not serve yet may take to exit after a stop signal.
_MAX_EXIT_S = 5

_on_stop: list[Callable[[], None]] = []
_stopping = False


@asynccontextmanager
async def entered_on_thread(manager: AbstractContextManager[_T]) -> AsyncIterator[_T]:
    """Enter and exit a blocking context manager on threads, so that the event loop answers health meanwhile.

    It is entered on a daemon thread: a stop signal while a model loads ends the process without waiting for it.
    """
    entered: Future[_T] = Future()

    def enter() -> None:
        try:
            entered.set_result(manager.__enter__())
        except BaseException as error:
            entered.set_exception(error)

    threading.Thread(target=enter, name="loading", daemon=True).start()
    resource = await asyncio.wrap_future(entered)
    try:
        yield resource
    finally:
        await asyncio.to_thread(manager.__exit__, None, None, None)


def install_stop_signals() -> None:
    """Make SIGTERM and SIGINT stop this process gracefully: running calls finish, and the exit code is 0.

    Before a server serves, the first signal ends the process at once. A second SIGINT always does.
    """
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)


@contextmanager
def on_stop(callback: Callable[[], None]) -> Iterator[None]:
    """Call `callback` on a stop signal. It runs in the signal handler, so it must not block."""
    _on_stop.append(callback)
    try:
        yield
    finally:
        _on_stop.remove(callback)


@contextmanager
def ready_file(
    path: Path | None, address: str, other_addresses: Mapping[str, str] = MappingProxyType({})
) -> Iterator[None]:
    """Write {"address": "127.0.0.1:50051", "pid": 4242} to `path`, and delete the file at the end. None: no file.

    `other_addresses` are further keys.
    """
    if path is None:
        yield
        return
    # Written aside and renamed: a reader never sees half a file.
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"address": address, **other_addresses, "pid": os.getpid()}
        unfinished.write_text(json.dumps(content) + "\n", encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise ConfigurationError(f"ready_file {path} cannot be written: {error.strerror}") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _exit_now(_number: int, _frame: FrameType | None) -> None:
    os._exit(0)


def _stop(number: int, _frame: FrameType | None) -> None:
    global _stopping  # noqa: PLW0603 - signal handlers belong to the process
    if _stopping and number == signal.SIGINT:
        os._exit(128 + number)
    _stopping = True
    if not _on_stop:
        # Python drops an exception that a signal handler raises inside a destructor or a weak reference's callback.
        signal.signal(signal.SIGALRM, _exit_now)
        signal.alarm(_MAX_EXIT_S)
        raise SystemExit(0)
    for callback in list(_on_stop):
        callback()
