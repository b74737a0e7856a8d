"""Servers of an event loop for tests that are not coroutines."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, TypeVar

from infra.runtime.methods import Adder
from infra.runtime.server import GrpcServer
from infra.runtime.settings import ServerOptions

T = TypeVar("T")


@contextmanager
def on_event_loop(open_it: Callable[[], AbstractAsyncContextManager[T]]) -> Iterator[T]:
    """Hold an async context manager open on the event loop of a thread, and yield what it yields."""
    opened: Future[tuple[T, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def hold() -> None:
        end = asyncio.Event()
        async with open_it() as value:
            opened.set_result((value, asyncio.get_running_loop(), end))
            await end.wait()

    def run() -> None:
        try:
            asyncio.run(hold())
        except BaseException as error:
            if opened.done():
                raise
            opened.set_exception(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        value, loop, end = opened.result(120)
    except BaseException:
        thread.join()
        raise
    try:
        yield value
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join()


@contextmanager
def serving_blocking(
    servicer: Any, adder: Adder, name: str, *, options: ServerOptions | None = None, threads: int = 8
) -> Iterator[GrpcServer]:
    """Serve a servicer whose methods are plain functions."""

    @asynccontextmanager
    async def serve() -> AsyncIterator[GrpcServer]:
        with ThreadPoolExecutor(threads) as executor:
            server = GrpcServer(options or ServerOptions(shutdown_grace_s=0))
            server.add(servicer, adder, name, executor)
            async with server:
                yield server

    with on_event_loop(serve) as server:
        yield server
