"""Concurrent calls with the same key share one execution.

Results are not cached: a call that starts after the execution ended runs the work again.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from functools import partial
from typing import Any, Generic, TypeVar

from infra.contract.errors import DeadlineError
from infra.runtime import deadline

_K = TypeVar("_K")
_V = TypeVar("_V")


class _Execution(Generic[_V]):
    """The running work of one key, and the deadline of the caller that started it."""

    def __init__(self, ends_at: float) -> None:
        self.ends_at = ends_at
        self.future: Future[_V] = Future()
        self.future.set_running_or_notify_cancel()  # From here on, no waiter can cancel it.

    def outlived_by(self, ends_at: float) -> bool:
        """Return whether its deadline has passed, while a waiter that ends at `ends_at` has time left."""
        return deadline.has_passed(self.ends_at) and ends_at > self.ends_at


class SingleFlight(Generic[_K, _V]):
    """One execution per key at a time, for threads (`run`) or the tasks of an event loop (`run_async`).

    Exceptions are shared like results, with one exception: the work runs under the deadline of the caller that started
    it. When that deadline ends the work, a waiter with a later deadline starts it again under its own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # Guards: _running.
        self._running: dict[_K, _Execution[_V]] = {}
        # The event loop keeps only weak references to tasks; without these a task could be collected while it runs.
        self._tasks: set[asyncio.Task[_V]] = set()

    def __contains__(self, key: _K) -> bool:
        """Return whether an execution for `key` is running."""
        with self._lock:
            return key in self._running

    def run(self, key: _K, work: Callable[[], _V]) -> _V:
        """Return the result of `work()`, or of the execution that is running for `key`.

        Called on: any thread. The first caller executes `work` on its own thread, the others block.
        """
        ends_at = deadline.ends_at()
        while True:
            execution, is_owner = self._join(key, ends_at)
            if is_owner:
                return self._execute(key, work)
            try:
                return execution.future.result()
            except DeadlineError:
                if not execution.outlived_by(ends_at):
                    raise

    async def run_async(self, key: _K, work: Callable[[], Coroutine[Any, Any, _V]], ends_at: float = math.inf) -> _V:
        """Return the result of `await work()`, or of the execution that is running for `key`.

        The work runs in a task of its own: cancelling a caller leaves it running for the others. The caller's deadline
        is `ends_at`, on the clock of time.monotonic(), or that of the call being served if it ends earlier.
        Called on: an event loop.
        """
        ends_at = min(ends_at, deadline.ends_at())
        while True:
            execution, is_owner = self._join(key, ends_at)
            if is_owner:
                self._start(key, work)
            try:
                return await asyncio.shield(asyncio.wrap_future(execution.future))
            except DeadlineError:
                if is_owner or not execution.outlived_by(ends_at):
                    raise

    def _execute(self, key: _K, work: Callable[[], _V]) -> _V:
        try:
            result = work()
        except BaseException as error:
            self._finish(key).set_exception(error)
            raise
        self._finish(key).set_result(result)
        return result

    def _start(self, key: _K, work: Callable[[], Coroutine[Any, Any, _V]]) -> None:
        async def execute() -> _V:
            return await work()

        task = asyncio.get_running_loop().create_task(execute())
        self._tasks.add(task)
        # A callback, not code of the task: a task that is cancelled before its first step runs no code.
        task.add_done_callback(partial(self._settle, key))

    def _settle(self, key: _K, task: asyncio.Task[_V]) -> None:
        self._tasks.discard(task)
        future = self._finish(key)
        if task.cancelled():
            future.set_exception(asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            future.set_exception(error)
        else:
            future.set_result(task.result())

    def _join(self, key: _K, ends_at: float) -> tuple[_Execution[_V], bool]:
        """Return the execution for `key`, and whether the caller has to execute it."""
        with self._lock:
            execution = self._running.get(key)
            if execution is not None:
                return execution, False
            execution = self._running[key] = _Execution(ends_at)
            return execution, True

    def _finish(self, key: _K) -> Future[_V]:
        """Remove the execution before its result is set, so that a woken waiter that calls again starts a new one."""
        with self._lock:
            return self._running.pop(key).future
