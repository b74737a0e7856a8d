"""Samples on a real Redis: begun under a lease, recorded once, and unclaimed by workers that live on."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from infra.contract.errors import InternalError
from orchestrator.evaluation.job import EvaluationState
from orchestrator.evaluation.records import Record
from orchestrator.jobs.ledger.ledger import Ledger
from orchestrator.jobs.ledger.replies import Start
from orchestrator.jobs.ledger.store import RedisStore, key_of
from orchestrator.jobs.worker.sample_runner import failed
from tests.support.harness.job_ledger import (
    TWO_SHARDS,
    A,
    C,
    D,
    claimed,
    complete_shards,
    job_of,
    shard_of,
)


async def test_record_counts_once_from_many_workers(ledger: Ledger) -> None:
    evaluation_id = await ledger.jobs.publish(TWO_SHARDS)
    record = Record(A, answer="Wait for response")
    stored = await asyncio.gather(*(ledger.record(shard_of(evaluation_id), record) for _ in range(10)))
    assert stored.count(True) == 1
    job = await ledger.jobs.get(evaluation_id)
    assert (job.done_samples, job.failed_samples) == (1, 0)


async def test_first_record_stays(ledger: Ledger) -> None:
    evaluation_id = await ledger.jobs.publish(TWO_SHARDS)
    await ledger.record(shard_of(evaluation_id), Record(A, answer="first"))
    assert not await ledger.record(shard_of(evaluation_id), failed(A, InternalError("late")))
    assert (await ledger.samples.records_of(evaluation_id, ["a"]))["a"].answer == "first"
    assert (await ledger.jobs.get(evaluation_id)).failed_samples == 0


async def test_failed_sample_is_done_and_failed(ledger: Ledger) -> None:
    evaluation_id = await ledger.jobs.publish(TWO_SHARDS)
    await ledger.record(shard_of(evaluation_id), failed(A, InternalError("no answer")))
    job = await ledger.jobs.get(evaluation_id)
    assert (job.done_samples, job.failed_samples) == (1, 1)


async def test_records_are_returned_in_planned_order(ledger: Ledger) -> None:
    evaluation_id = await ledger.jobs.publish(TWO_SHARDS)
    for sample in (D, A, C):
        await ledger.record(shard_of(evaluation_id), Record(sample, answer=sample.key))
    assert [record.answer for record in await ledger.samples.in_order(evaluation_id)] == ["a", "c", "d"]


async def test_sample_begun_by_too_many_dead_workers_is_exhausted(ledger: Ledger, store: RedisStore) -> None:
    evaluation_id = await ledger.jobs.publish(TWO_SHARDS)
    claim = await claimed(ledger)
    assert [await ledger.begin_sample(claim, "a") for _ in range(3)] == [Start.BEGUN] * 3  # Repeated, counted once.
    starts = []
    for owner in ("second", "third"):
        claim = replace(claim, owner=owner)
        await store.redis.hset(key_of(evaluation_id, "owners"), "0", owner)
        starts.append(await ledger.begin_sample(claim, "a"))
    assert starts == [Start.BEGUN, Start.EXHAUSTED]
    assert await ledger.samples.begun(evaluation_id, ["a", "b"]) == {"a"}
    await ledger.record(shard_of(evaluation_id), Record(A, answer="done"))
    assert await ledger.begin_sample(claim, "a") is Start.RECORDED
    assert await ledger.samples.begun(evaluation_id, ["a", "b"]) == set()
    assert await ledger.samples.recorded(evaluation_id, ["a", "b"]) == {"a"}


async def test_unclaimed_sample_leaves_no_trace(ledger: Ledger, store: RedisStore) -> None:
    evaluation_id = await ledger.jobs.publish(TWO_SHARDS)
    claim = await claimed(ledger)
    await ledger.begin_sample(claim, "a")
    for _ in range(2):
        await ledger.unclaim_sample(claim, "a")
    assert await ledger.samples.begun(evaluation_id, ["a"]) == set()
    assert await store.redis.keys("*:tries") == []


async def test_tries_are_unclaimed_in_any_order(ledger: Ledger, store: RedisStore) -> None:
    evaluation_id = await ledger.jobs.publish(job_of([A]))
    claim = await claimed(ledger)
    owners = []
    for number in range(4):  # Each owner loses its shard to the next and notices late.
        owners.append(replace(claim, owner=f"owner-{number}"))
        await store.redis.hset(key_of(evaluation_id, "owners"), "0", owners[-1].owner)
        assert await ledger.begin_sample(owners[-1], "a") is Start.BEGUN
        for earlier in owners[:-1]:
            await ledger.unclaim_sample(earlier, "a")
    await ledger.unclaim_sample(owners[-1], "a")
    assert await ledger.samples.begun(evaluation_id, ["a"]) == set()


async def test_record_after_report_began_is_refused(ledger: Ledger) -> None:
    evaluation_id = await ledger.jobs.publish(TWO_SHARDS)
    await complete_shards(ledger)
    assert not await ledger.record(shard_of(evaluation_id), Record(A, answer="late"))


async def test_late_record_does_not_restore_deleted_job(ledger: Ledger, store: RedisStore) -> None:
    evaluation_id = await ledger.jobs.publish(TWO_SHARDS)
    await ledger.jobs.conclude(evaluation_id, EvaluationState.SUCCEEDED)
    await ledger.jobs.delete(evaluation_id)
    assert not await ledger.record(shard_of(evaluation_id), Record(A, answer="late"))
    assert await store.redis.keys("*") == []
