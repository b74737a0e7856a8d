"""One event loop for all threads of a process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

CANCEL_AGAIN_S = 0.5

_T = TypeVar("_T")


class ThreadNotStartedError(RuntimeError):
    """The system has no room for another thread."""


class EventLoopThread:
    """An event loop on a thread of its own, on which other threads run coroutines and wait."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="event-loop", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine on the loop and return what it returns. Not from the loop's own thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def call_soon(self, callback: Any, *arguments: Any) -> None:
        """Run a callback on the loop without waiting. From any thread, or a signal handler."""
        self._loop.call_soon_threadsafe(callback, *arguments)

    def close(self) -> None:
        """Stop the loop; what still runs on it is cancelled."""
        self.run(_cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@asynccontextmanager
async def in_background(*coroutines: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run coroutines beside the block, and cancel them at its end."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        yield
    finally:
        await _end(tasks)


async def on_own_thread(call: Callable[[], _T]) -> _T:
    """Return what a blocking call gives, made on a thread of its own: one that hangs takes no place in a pool, and
    ends with the process. Raises ThreadNotStartedError, and what the call raises.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def run() -> None:
        result: Future[_T] = Future()
        try:
            result.set_result(call())
        except BaseException as error:
            result.set_exception(error)
        with suppress(RuntimeError):  # The loop is closed: nobody waits any more.
            loop.call_soon_threadsafe(settle, result)

    def settle(result: Future[_T]) -> None:
        if future.done():
            return
        error = result.exception()
        if error is None:
            future.set_result(result.result())
        else:
            future.set_exception(error)

    try:
        threading.Thread(target=run, daemon=True).start()
    except RuntimeError as error:
        raise ThreadNotStartedError(str(error)) from error
    return await future


async def _end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks until they have ended: libraries have been seen to lose a cancellation."""
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=CANCEL_AGAIN_S)


async def _cancel_others() -> None:
    current = asyncio.current_task()
    await _end(task for task in asyncio.all_tasks() if task is not current)
