"""The report of a job: released, postponed, and never written twice at a time."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from infra.contract.errors import UnavailableError
from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.evaluation.job import EvaluationState
from orchestrator.evaluation.records import Record
from orchestrator.evaluation.spec import DatasetSpec, EvaluatedStrategy, EvaluationSpec
from orchestrator.jobs.ledger.ledger import Ledger
from orchestrator.jobs.ledger.store import RedisStore
from orchestrator.jobs.ledger.types import REPORT_UNIT, LedgerLimits, NewEvaluation
from orchestrator.jobs.worker import report_writer
from orchestrator.jobs.worker.isolation import Isolation
from orchestrator.jobs.worker.report_writer import ReportWriter
from tests.support.harness.evaluation_data import sample
from tests.support.harness.job_ledger import claimed, shard_of

BASE = EvaluatedStrategy(AnswerStrategy.BASE)
SPEC = EvaluationSpec((DatasetSpec("clock", "clock.jsonl"),), (BASE,))
SAMPLE = sample("Scroll up", strategy=BASE)


async def answered_job(ledger: Ledger, folder: Path, records: int = 1) -> str:
    """Publish a job of one sample with a number of records, and complete its shard."""
    evaluation_id = await ledger.jobs.publish(NewEvaluation(SPEC, [[SAMPLE]], str(folder / "out")))
    for _ in range(records):
        await ledger.record(shard_of(evaluation_id), Record(SAMPLE, answer="Scroll up"))
    await ledger.complete(await claimed(ledger))
    return evaluation_id


async def write_when_due(ledger: Ledger, writer: ReportWriter) -> None:
    """Wait for a postponed report to be due, and write it."""
    async with asyncio.timeout(10):
        while (claim := await ledger.claim()) is None:
            await asyncio.sleep(0.01)
    assert await writer.run(claim, asyncio.Event())


async def test_report_of_stopping_worker_is_released_and_its_attempt_does_not_count(
    store: RedisStore, tmp_path: Path
) -> None:
    ledger, stopping, loop = Ledger(store), asyncio.Event(), asyncio.get_running_loop()
    await answered_job(ledger, tmp_path)
    end = threading.Event()

    def hang(*_: object) -> None:
        loop.call_soon_threadsafe(stopping.set)
        end.wait(60)

    for _ in range(2 * ledger.limits.report_attempts):
        stopping.clear()
        writer = ReportWriter(ledger, [], Isolation(), stop_grace_s=0.01, write_files=hang)
        assert not await writer.run(await claimed(ledger), stopping)
    end.set()
    assert (await claimed(ledger)).attempts == 1


async def test_report_that_hangs_is_postponed_and_not_written_concurrently(
    store: RedisStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_writer, "TIME_LIMIT_S", 0.2)
    ledger = Ledger(store, LedgerLimits(first_pause_s=0.01))
    written: list[object] = []
    end = threading.Event()

    def hang_once(*arguments: object) -> None:
        written.append(arguments)
        if len(written) == 1:
            end.wait(60)

    writer = ReportWriter(ledger, [], Isolation(), write_files=hang_once)
    evaluation_id = await answered_job(ledger, tmp_path)
    for reason in ("not written within 0.2 s", "an earlier try has not ended yet"):
        await write_when_due(ledger, writer)
        assert reason in (await ledger.jobs.get(evaluation_id)).stalled
    assert len(written) == 1
    end.set()
    async with asyncio.timeout(10):
        while not (await ledger.jobs.get(evaluation_id)).state.ended:
            await write_when_due(ledger, writer)
    assert (await ledger.jobs.get(evaluation_id)).state is EvaluationState.SUCCEEDED
    assert len(written) == 2


async def test_end_of_job_waits_for_absent_redis(
    store: RedisStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.jobs.worker.shard_lease.AWAY_PAUSE_S", 0.01)
    ledger = Ledger(store)
    evaluation_id = await answered_job(ledger, tmp_path)
    conclude, away = ledger.jobs.conclude, [UnavailableError("Redis is away")] * 3

    async def away_at_first(*arguments: Any) -> bool:
        if away:
            raise away.pop()
        return await conclude(*arguments)

    monkeypatch.setattr(ledger.jobs, "conclude", away_at_first)
    assert await ReportWriter(ledger, [], Isolation()).run(await claimed(ledger), asyncio.Event())
    assert (await ledger.jobs.get(evaluation_id)).state is EvaluationState.SUCCEEDED


async def test_report_without_all_records_is_not_written(store: RedisStore, tmp_path: Path) -> None:
    ledger = Ledger(store)
    evaluation_id = await answered_job(ledger, tmp_path, records=0)
    assert await ReportWriter(ledger, [], Isolation()).run(await claimed(ledger), asyncio.Event())
    job = await ledger.jobs.get(evaluation_id)
    assert job.state is EvaluationState.RUNNING
    assert "1 samples of 1 have no record" in job.stalled
    assert not (tmp_path / "out").exists()


async def test_report_that_ended_its_worker_waits_to_run_alone(store: RedisStore, tmp_path: Path) -> None:
    await answered_job(Ledger(store, LedgerLimits()), tmp_path)
    await Ledger(store, LedgerLimits(lease_s=0)).claim()
    ledger, isolation, leave = Ledger(store), Isolation(), asyncio.Event()
    claim = await claimed(ledger)
    assert claim.attempts == 2

    async def busy() -> None:
        async with isolation.together(asyncio.Event()):
            await leave.wait()

    other = asyncio.create_task(busy())
    await asyncio.sleep(0)
    run = asyncio.create_task(ReportWriter(ledger, [], isolation).run(claim, asyncio.Event()))
    await asyncio.sleep(0.1)
    assert not (tmp_path / "out").exists()
    leave.set()
    assert await run
    await other
    assert (tmp_path / "out").exists()


async def test_report_that_killed_its_workers_fails_job_without_another_try(store: RedisStore) -> None:
    ledger = Ledger(store, LedgerLimits(report_attempts=0))
    evaluation_id = await ledger.jobs.publish(NewEvaluation(SPEC, [[SAMPLE]], "out"))
    await ledger.record(shard_of(evaluation_id), Record(SAMPLE, answer="done"))
    await ledger.complete(await claimed(ledger))
    report = await claimed(ledger)
    assert (report.unit, report.exhausted) == (REPORT_UNIT, True)
    written: list[object] = []
    writer = ReportWriter(ledger, [], Isolation(), write_files=lambda *files: written.append(files))
    assert await writer.run(report, asyncio.Event())
    assert written == []
    job = await ledger.jobs.get(evaluation_id)
    assert job.state is EvaluationState.FAILED
    assert "while it wrote the report" in job.error
    assert await ledger.samples.recorded(evaluation_id, [SAMPLE.key]) == {SAMPLE.key}
