"""An event loop on its own thread, and helpers for tasks and threads that outlast a cancellation."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

_CANCEL_AGAIN_S = 0.5  # A cancellation that a library lost is repeated after this time.

_T = TypeVar("_T")


class ThreadNotStartedError(RuntimeError):
    """The system has no room for another thread."""


class EventLoopThread:
    """An event loop on its own thread, on which other threads run coroutines and wait for them."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="event-loop", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine on the loop and return its result. Called on: any thread but the loop's."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def call_soon(self, callback: Callable[..., object], *arguments: Any) -> None:
        """Run a callback on the loop without waiting. Called on: any thread, also in a signal handler."""
        self._loop.call_soon_threadsafe(callback, *arguments)

    def close(self) -> None:
        """Cancel what runs on the loop, and stop it. Called on: any thread but the loop's."""
        self.run(_cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@asynccontextmanager
async def in_background(*coroutines: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run coroutines while the block runs, and cancel them at its end."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        yield
    finally:
        await _end(tasks)


async def on_own_thread(call: Callable[[], _T]) -> _T:
    """Return the result of a blocking call made on its own daemon thread.

    A call that hangs takes no thread of a pool, and does not keep the process from exiting.

    Raises:
        ThreadNotStartedError: the thread could not be started.
        BaseException: what the call raised.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def run() -> None:
        result: Future[_T] = Future()
        try:
            result.set_result(call())
        except BaseException as error:
            result.set_exception(error)
        with suppress(RuntimeError):  # The loop is closed: nothing awaits the result any more.
            loop.call_soon_threadsafe(resolve, result)

    def resolve(result: Future[_T]) -> None:
        if future.done():  # Cancelled in the meantime.
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
    running = set(tasks)
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=_CANCEL_AGAIN_S)


async def _cancel_others() -> None:
    current = asyncio.current_task()
    await _end(task for task in asyncio.all_tasks() if task is not current)
