"""Samples of one worker run side by side, but for one that may kill it: that one runs alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class StoppedWaitingError(Exception):
    """Who waited was told to stop before it was let in."""


class Isolation:
    """Lets work of one event loop run together, or alone. Who waits to be alone lets nobody else begin.

    Both raise StoppedWaitingError when `stop` is set while they wait.
    """

    def __init__(self) -> None:
        self._together = 0
        self._alone = False
        self._waiting = 0
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def together(self, stop: asyncio.Event) -> AsyncIterator[None]:
        """Run the block beside others, once nothing is alone or waits to be."""
        await self._until(lambda: not self._alone and not self._waiting, stop)
        self._together += 1
        try:
            yield
        finally:
            self._together -= 1
            self._tell()

    @asynccontextmanager
    async def alone(self, stop: asyncio.Event) -> AsyncIterator[None]:
        """Run the block when nothing else runs; nothing else begins until it has ended."""
        self._waiting += 1
        try:
            await self._until(lambda: not self._alone and not self._together, stop)
            self._alone = True
        finally:
            self._waiting -= 1
            self._tell()
        try:
            yield
        finally:
            self._alone = False
            self._tell()

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

    def _tell(self) -> None:
        """Let who waits look again."""
        self._changed.set()
        self._changed = asyncio.Event()
