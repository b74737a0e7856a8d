"""The report of a job: handed on, put off, and never written twice at a time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from infra.contract.errors import UnavailableError
from infra.runtime.embedded_redis import embedded_redis
from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.evaluation.records import Record
from orchestrator.evaluation.spec import DatasetSpec, EvaluatedStrategy, EvaluationSpec
from orchestrator.jobs.job import EvaluationState
from orchestrator.jobs.ledger.ledger import Ledger
from orchestrator.jobs.ledger.store import RedisStore
from orchestrator.jobs.ledger.types import LedgerLimits, NewEvaluation, Taken
from orchestrator.jobs.worker import report_writer as finish
from orchestrator.jobs.worker.isolation import Isolation
from orchestrator.jobs.worker.report_writer import Finish
from tests.support.harness.evaluation_data import sample

BASE = EvaluatedStrategy(AnswerStrategy.BASE)
SPEC = EvaluationSpec((DatasetSpec("clock", "clock.jsonl"),), (BASE,))
SAMPLE = sample("Scroll up", strategy=BASE)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[RedisStore]:
    with embedded_redis(tmp_path / "redis") as url:
        async with RedisStore(url) as opened:
            yield opened


async def take(ledger: Ledger) -> Taken:
    taken = await ledger.units.take()
    assert taken is not None
    return taken


async def answered_job(ledger: Ledger, folder: Path, records: int = 1) -> str:
    """Publish a job of one sample with so many records, all of its shards closed."""
    evaluation_id = await ledger.publish(NewEvaluation(SPEC, [[SAMPLE]], str(folder / "out")))
    for _ in range(records):
        await ledger.samples.record(evaluation_id, "0", Record(SAMPLE, answer="Scroll up"))
    await ledger.units.close(await take(ledger))
    return evaluation_id


async def test_report_of_a_stopping_worker_is_handed_on_and_counts_no_death(
    store: RedisStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, stopping = Ledger(store), asyncio.Event()
    await answered_job(ledger, tmp_path)

    async def hangs(*_: object) -> EvaluationState:
        stopping.set()
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(Finish, "_write", hangs)
    for _ in range(2 * ledger.limits.finish_attempts):
        stopping.clear()
        assert not await Finish(ledger, [], Isolation(), stop_grace_s=0.01).run(await take(ledger), stopping)
    assert (await take(ledger)).attempts == 1


async def test_report_that_hangs_is_put_off_and_not_written_beside_itself(
    store: RedisStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finish, "TIME_LIMIT_S", 0.2)
    ledger = Ledger(store, LedgerLimits(first_pause_s=0.01))
    writer = Finish(ledger, [], Isolation())
    evaluation_id = await answered_job(ledger, tmp_path)
    begun: list[object] = []
    go_on = threading.Event()

    def hangs(*arguments: Any, **_: Any) -> None:
        begun.append(arguments)
        go_on.wait(10)

    with monkeypatch.context() as patched:
        patched.setattr(finish, "_write_files", hangs)
        for said in ("not written within 0.2 s", "an earlier try has not ended yet"):
            assert await writer.run(await take(ledger), asyncio.Event())
            assert said in (await ledger.get(evaluation_id)).stalled
            await asyncio.sleep(0.05)
        go_on.set()
    assert len(begun) == 1
    async with asyncio.timeout(10):
        while not (await ledger.get(evaluation_id)).state.ended:
            taken = await ledger.units.take()
            if taken is not None:
                await writer.run(taken, asyncio.Event())
    assert (await ledger.get(evaluation_id)).state is EvaluationState.SUCCEEDED


async def test_redis_that_is_away_while_a_job_ends_is_waited_for(
    store: RedisStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.jobs.worker.shard_lease.AWAY_PAUSE_S", 0.01)
    ledger = Ledger(store)
    evaluation_id = await answered_job(ledger, tmp_path)
    conclude, away = ledger.conclude, [UnavailableError("Redis is away")] * 3

    async def away_at_first(*arguments: Any) -> bool:
        if away:
            raise away.pop()
        return await conclude(*arguments)

    monkeypatch.setattr(ledger, "conclude", away_at_first)
    assert await Finish(ledger, [], Isolation()).run(await take(ledger), asyncio.Event())
    assert (await ledger.get(evaluation_id)).state is EvaluationState.SUCCEEDED


async def test_report_without_all_records_is_not_written(store: RedisStore, tmp_path: Path) -> None:
    ledger = Ledger(store)
    evaluation_id = await answered_job(ledger, tmp_path, records=0)
    assert await Finish(ledger, [], Isolation()).run(await take(ledger), asyncio.Event())
    job = await ledger.get(evaluation_id)
    assert job.state is EvaluationState.RUNNING
    assert "1 samples of 1 have no record" in job.stalled
    assert not (tmp_path / "out").exists()


async def test_report_that_ended_a_worker_before_waits_to_be_alone(store: RedisStore, tmp_path: Path) -> None:
    await answered_job(Ledger(store, LedgerLimits()), tmp_path)
    await Ledger(store, LedgerLimits(lease_s=0)).units.take()
    ledger, isolation, leave = Ledger(store), Isolation(), asyncio.Event()
    taken = await take(ledger)
    assert taken.attempts == 2

    async def busy() -> None:
        async with isolation.together(asyncio.Event()):
            await leave.wait()

    other = asyncio.create_task(busy())
    await asyncio.sleep(0)
    run = asyncio.create_task(Finish(ledger, [], isolation).run(taken, asyncio.Event()))
    await asyncio.sleep(0.1)
    assert not (tmp_path / "out").exists()
    leave.set()
    assert await run
    await other
    assert (tmp_path / "out").exists()
