"""Concurrent calls for one key share one execution, its failure included; later calls run again."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from infra.contract.errors import CheckpointError, DeadlineError
from infra.runtime import single_flight
from infra.runtime.deadline import bind_deadline, ends_at, remaining_s
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


async def test_tasks_share_failure() -> None:
    flight: SingleFlight[str, int] = SingleFlight()

    async def fail() -> int:
        await asyncio.sleep(0)
        raise CheckpointError("half a file")

    outcomes = await asyncio.gather(*(flight.run_async("a", fail) for _ in range(CALLERS)), return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["half a file"] * CALLERS


def pass_deadline() -> None:
    """Wait until the deadline of this context has passed."""
    while remaining_s() != 0:
        time.sleep(0.01)


def test_waiting_thread_with_later_deadline_runs_work_that_deadline_ended(waiting: threading.Semaphore) -> None:
    flight: SingleFlight[str, str] = SingleFlight()
    started, waiter_joined = threading.Event(), threading.Event()

    def run(timeout_s: float, work: Callable[[], str]) -> str:
        bind_deadline(timeout_s)
        try:
            return flight.run("a", work)
        finally:
            bind_deadline(None)

    def late() -> str:
        started.set()
        assert waiter_joined.wait(20)
        pass_deadline()
        raise DeadlineError("too late")

    with ThreadPoolExecutor() as pool:
        hasty = pool.submit(run, 0.05, late)
        assert started.wait(20)
        patient = pool.submit(run, 60, lambda: "result")
        assert waiting.acquire(timeout=20)
        waiter_joined.set()
        with pytest.raises(DeadlineError, match="too late"):
            hasty.result(20)
        assert patient.result(20) == "result"
    assert "a" not in flight


def test_waiting_thread_gets_deadline_error_that_no_deadline_of_caller_caused(waiting: threading.Semaphore) -> None:
    flight: SingleFlight[str, str] = SingleFlight()
    started, finish = threading.Event(), threading.Event()
    executions: list[str] = []

    def time_out() -> str:
        executions.append("a")
        started.set()
        assert finish.wait(20)
        raise DeadlineError("a server did not answer")

    with ThreadPoolExecutor() as pool:
        callers = [pool.submit(flight.run, "a", time_out) for _ in range(CALLERS)]
        for _ in range(CALLERS - 1):
            assert waiting.acquire(timeout=20)
        finish.set()
        for caller in callers:
            with pytest.raises(DeadlineError, match="a server did not answer"):
                caller.result(20)
    assert executions == ["a"]


async def test_waiting_task_with_later_deadline_runs_work_that_deadline_ended() -> None:
    flight: SingleFlight[str, float] = SingleFlight()
    joined = asyncio.Event()

    async def work() -> float:
        if ends_at() < time.monotonic() + 30:
            await joined.wait()
            pass_deadline()
            raise DeadlineError("too late")
        return 7

    async def run(timeout_s: float) -> float:
        bind_deadline(timeout_s)
        return await flight.run_async("a", work)

    hasty = asyncio.create_task(run(0.05))
    await asyncio.sleep(0)
    patient, shorter = asyncio.create_task(run(60)), asyncio.create_task(run(0.01))
    await asyncio.sleep(0)
    joined.set()
    for caller in (hasty, shorter):
        with pytest.raises(DeadlineError, match="too late"):
            await caller
    assert await patient == 7
    assert "a" not in flight


async def test_task_cancelled_before_its_first_step_fails_its_waiters_and_frees_key() -> None:
    flight: SingleFlight[str, int] = SingleFlight()

    async def work() -> int:
        raise AssertionError("never runs")

    before = asyncio.all_tasks()
    caller = asyncio.ensure_future(flight.run_async("a", work))
    asyncio.get_running_loop().call_soon(lambda: [t.cancel() for t in asyncio.all_tasks() - before - {caller}])
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert "a" not in flight
