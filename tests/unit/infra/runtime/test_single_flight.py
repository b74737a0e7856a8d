"""Concurrent calls for one key share one execution, its failure included; later calls run again."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from infra.contract.errors import CheckpointError
from infra.runtime import single_flight
from infra.runtime.single_flight import SingleFlight

CALLERS = 5


class AnnouncedFuture(Future[Any]):
    """A future that announces each thread that is about to wait for it."""

    waiting = threading.Semaphore(0)

    def result(self, timeout: float | None = None) -> Any:
        self.waiting.release()
        return super().result(timeout)


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    monkeypatch.setattr(AnnouncedFuture, "waiting", threading.Semaphore(0))
    monkeypatch.setattr(single_flight, "Future", AnnouncedFuture)
    return AnnouncedFuture.waiting


@pytest.mark.parametrize("fails", [False, True])
def test_threads_share_one_execution(fails: bool, waiting: threading.Semaphore) -> None:
    flight: SingleFlight[str, str] = SingleFlight()
    finish = threading.Event()
    executions: list[str] = []

    def work() -> str:
        executions.append("a")
        assert finish.wait(20)
        if fails:
            raise CheckpointError("half a file")
        return "result"

    def outcome() -> str:
        try:
            return flight.run("a", work)
        except CheckpointError as error:
            return error.message

    with ThreadPoolExecutor(CALLERS) as pool:
        callers = [pool.submit(outcome) for _ in range(CALLERS)]
        for _ in range(CALLERS - 1):
            assert waiting.acquire(timeout=20)
        assert flight.run("b", lambda: "other") == "other", "another key does not wait"
        finish.set()
        assert [caller.result(20) for caller in callers] == ["half a file" if fails else "result"] * CALLERS
    assert executions == ["a"]
    assert "a" not in flight
    assert flight.run("a", lambda: "again") == "again", "results are not cached"


async def test_tasks_share_one_execution_that_outlives_its_first_caller() -> None:
    flight: SingleFlight[str, int] = SingleFlight()
    finish = asyncio.Event()
    executions: list[str] = []

    async def work() -> int:
        executions.append("a")
        await finish.wait()
        return 7

    first, second = (asyncio.create_task(flight.run_async("a", work)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert "a" in flight
    finish.set()
    assert await second == 7
    assert executions == ["a"]
    assert "a" not in flight


async def test_tasks_share_a_failure() -> None:
    flight: SingleFlight[str, int] = SingleFlight()

    async def fail() -> int:
        await asyncio.sleep(0)
        raise CheckpointError("half a file")

    outcomes = await asyncio.gather(*(flight.run_async("a", fail) for _ in range(CALLERS)), return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["half a file"] * CALLERS
