"""Background tasks, and an event loop on its own thread."""

from __future__ import annotations

import asyncio
import threading

import pytest

from orchestrator.jobs.event_loop import EventLoopThread, ThreadNotStartedError, in_background, on_own_thread


async def test_task_that_loses_a_cancellation_is_cancelled_again() -> None:
    lost = 0

    async def stubborn() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                lost += 1
                if lost == 2:
                    raise

    async with asyncio.timeout(10), in_background(stubborn()):
        await asyncio.sleep(0)
    assert lost == 2


async def test_background_task_ends_with_failed_block() -> None:
    ended = False

    async def work() -> None:
        nonlocal ended
        try:
            await asyncio.Event().wait()
        finally:
            ended = True

    async def failing() -> None:
        async with in_background(work()):
            await asyncio.sleep(0)
            raise ValueError("the block failed")

    with pytest.raises(ValueError, match="the block failed"):
        await failing()
    assert ended


def test_coroutines_of_many_threads_run_on_one_loop() -> None:
    loop = EventLoopThread()
    names: set[str] = set()

    async def note() -> str:
        names.add(threading.current_thread().name)
        return "done"

    results: list[str] = []
    threads = [threading.Thread(target=lambda: results.append(loop.run(note()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    loop.close()
    assert results == ["done"] * 4
    assert names == {"event-loop"}


def test_close_cancels_running_tasks() -> None:
    loop = EventLoopThread()
    ended = threading.Event()

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def start() -> asyncio.Task[None]:
        task = asyncio.create_task(forever())
        await asyncio.sleep(0)
        return task

    task = loop.run(start())
    loop.close()
    assert ended.is_set()
    assert task.cancelled()


async def test_call_on_own_thread_returns_its_result() -> None:
    assert await on_own_thread(threading.current_thread) is not threading.current_thread()


async def test_call_on_own_thread_raises_its_error() -> None:
    def fail() -> None:
        raise ValueError("the call failed")

    with pytest.raises(ValueError, match="the call failed"):
        await on_own_thread(fail)


async def test_call_on_own_thread_outlives_its_cancelled_waiter() -> None:
    begun, end, ended = threading.Event(), threading.Event(), threading.Event()

    def call() -> None:
        begun.set()
        end.wait(60)
        ended.set()

    waiter = asyncio.create_task(on_own_thread(call))
    await asyncio.to_thread(begun.wait, 60)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    end.set()
    assert await asyncio.to_thread(ended.wait, 60)


async def test_thread_that_cannot_be_started_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(ThreadNotStartedError, match="can't start"):
        await on_own_thread(lambda: None)
