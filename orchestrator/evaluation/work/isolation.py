"""Samples of one worker run side by side, but for one that may kill it: that one runs alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Isolation:
    """Lets work of one event loop run together, or alone. Who waits to be alone lets nobody else begin."""

    def __init__(self) -> None:
        self._together = 0
        self._empty = asyncio.Event()
        self._empty.set()
        self._open = asyncio.Event()
        self._open.set()
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def together(self) -> AsyncIterator[None]:
        """Run the block beside others, once nothing is alone or waits to be."""
        while not self._open.is_set():
            await self._open.wait()
        self._together += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._together -= 1
            if not self._together:
                self._empty.set()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Run the block when nothing else runs; nothing else begins until it has ended."""
        async with self._turn:
            self._open.clear()
            try:
                await self._empty.wait()
                yield
            finally:
                self._open.set()
