"""Concurrent calls with the same key share one execution.

Results are not cached: a call that starts after the execution ended runs the work again.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

_K = TypeVar("_K")
_V = TypeVar("_V")


class SingleFlight(Generic[_K, _V]):
    """One execution per key at a time, for threads (`run`) or the tasks of an event loop (`run_async`)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # Guards: _running.
        self._running: dict[_K, Future[_V]] = {}
        # The event loop keeps only weak references to tasks; without these a task could be collected while it runs.
        self._tasks: set[asyncio.Task[None]] = set()

    def __contains__(self, key: _K) -> bool:
        """Return whether an execution for `key` is running."""
        with self._lock:
            return key in self._running

    def run(self, key: _K, work: Callable[[], _V]) -> _V:
        """Return the result of `work()`, or of the execution that is running for `key`. Exceptions are shared too.

        Called on: any thread. The first caller executes `work` on its own thread, the others block.
        """
        future, is_owner = self._join(key)
        if not is_owner:
            return future.result()
        try:
            result = work()
        except BaseException as error:
            self._finish(key).set_exception(error)
            raise
        self._finish(key).set_result(result)
        return result

    async def run_async(self, key: _K, work: Callable[[], Coroutine[Any, Any, _V]]) -> _V:
        """Return the result of `await work()`, or of the execution that is running for `key`.

        The work runs in a task of its own: cancelling a caller leaves it running for the others.
        Called on: an event loop.
        """
        future, is_owner = self._join(key)
        if is_owner:
            task = asyncio.get_running_loop().create_task(self._execute(key, work))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(asyncio.wrap_future(future))

    async def _execute(self, key: _K, work: Callable[[], Coroutine[Any, Any, _V]]) -> None:
        try:
            result = await work()
        except BaseException as error:
            self._finish(key).set_exception(error)
            if isinstance(error, asyncio.CancelledError):
                raise
        else:
            self._finish(key).set_result(result)

    def _join(self, key: _K) -> tuple[Future[_V], bool]:
        """Return the execution for `key`, and whether the caller has to execute it."""
        with self._lock:
            future = self._running.get(key)
            if future is not None:
                return future, False
            future = self._running[key] = Future()
            future.set_running_or_notify_cancel()  # from here on, no waiter can cancel it
            return future, True

    def _finish(self, key: _K) -> Future[_V]:
        """Remove the execution before its result is set, so that a woken waiter that calls again starts a new one."""
        with self._lock:
            return self._running.pop(key)
