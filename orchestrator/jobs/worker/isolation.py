"""Runs the samples of a worker concurrently, except one that may kill it: that one runs alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class StoppedWaitingError(Exception):
    """`stop` was set while a block waited for its turn."""


class Isolation:
    """Runs blocks either together or alone: a reader-writer lock that prefers writers.

    A block that waits to run alone keeps others from starting, so that it is not starved. Both methods raise
    StoppedWaitingError if `stop` is set while they wait.

    Called on: one event loop. State changes between awaits only, so no lock is needed.
    """

    def __init__(self) -> None:
        self._together = 0
        self._alone = False
        self._waiting_alone = 0
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def together(self, stop: asyncio.Event) -> AsyncIterator[None]:
        """Run the block concurrently with others, once no block runs alone or waits to."""
        await self._until(lambda: not self._alone and not self._waiting_alone, stop)
        self._together += 1
        try:
            yield
        finally:
            self._together -= 1
            self._wake_waiters()

    @asynccontextmanager
    async def alone(self, stop: asyncio.Event) -> AsyncIterator[None]:
        """Run the block once no other runs; no other starts before it has ended."""
        self._waiting_alone += 1
        try:
            await self._until(lambda: not self._alone and not self._together, stop)
            self._alone = True
        finally:
            self._waiting_alone -= 1
            self._wake_waiters()
        try:
            yield
        finally:
            self._alone = False
            self._wake_waiters()

    async def _until(self, condition: Callable[[], bool], stop: asyncio.Event) -> None:
        while not condition():
            waits = [asyncio.ensure_future(event.wait()) for event in (self._changed, stop)]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
            if stop.is_set():
                raise StoppedWaitingError

    def _wake_waiters(self) -> None:
        # Waiters hold the old event, which stays set; those that find their condition false wait on the new one.
        self._changed.set()
        self._changed = asyncio.Event()
