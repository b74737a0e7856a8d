"""Leases of units on a real Redis: claimed once, renewed, completed, released, and counted when they are lost."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.evaluation.job import EvaluationState
from orchestrator.evaluation.records import Record
from orchestrator.jobs.ledger.ledger import Ledger
from orchestrator.jobs.ledger.replies import Cancellation, LeaseState, Postponement, Start
from orchestrator.jobs.ledger.store import RedisStore, key_of
from orchestrator.jobs.ledger.types import REPORT_UNIT, Backlog, LedgerLimits
from tests.support.harness.job_ledger import (
    TWO_SHARDS,
    A,
    B,
    claimed,
    complete_shards,
    job_of,
    planned_sample,
    repeated,
    shard_of,
)

NO_LEASE = LedgerLimits(lease_s=0)


async def test_shard_is_claimed_by_one_worker_only(ledger: Ledger) -> None:
    evaluation_id = await ledger.jobs.publish(TWO_SHARDS)
    replies = await asyncio.gather(*(ledger.claim() for _ in range(8)))
    claims = sorted((claim.evaluation_id, claim.unit) for claim in replies if claim is not None)
    assert claims == [(evaluation_id, "0"), (evaluation_id, "1")]
    assert (await ledger.jobs.get(evaluation_id)).state is EvaluationState.RUNNING


async def test_repeated_claim_returns_same_unit(
    ledger: Ledger, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ledger.jobs.publish(TWO_SHARDS)
    with monkeypatch.context() as patched:
        patched.setattr(store, "run", repeated(store.run))
        first = await claimed(ledger)
    assert (await claimed(ledger)).unit != first.unit


async def test_expired_lease_is_claimed_by_another_and_lost_to_first_owner(store: RedisStore) -> None:
    ledger = Ledger(store, NO_LEASE)
    await ledger.jobs.publish(job_of([A]))
    first, second = await claimed(ledger), await claimed(ledger)
    assert (first.unit, second.unit) == ("0", "0")
    assert await ledger.renew(first) is LeaseState.LOST
    assert await ledger.renew(second) is LeaseState.HELD
    assert await ledger.begin_sample(first, "a") is Start.LOST
    assert not await ledger.release(first)


async def test_jobs_take_turns_and_report_precedes_shards(ledger: Ledger) -> None:
    huge = await ledger.jobs.publish(job_of(*[[planned_sample(f"h{n}")] for n in range(50)]))
    small = await ledger.jobs.publish(TWO_SHARDS)
    claims = [await claimed(ledger) for _ in range(5)]
    assert [claim.evaluation_id for claim in claims] == [huge, small, huge, small, huge]
    assert [claim.unit for claim in claims] == ["0", "0", "1", "1", "2"]
    for claim in (claims[1], claims[3]):
        await ledger.complete(claim)
    report = await claimed(ledger)
    assert (report.evaluation_id, report.unit) == (small, REPORT_UNIT)


async def test_jobs_take_turns_with_one_shard_under_way(ledger: Ledger) -> None:
    first, second = [await ledger.jobs.publish(job_of(*[[planned_sample(f"{n}")] for n in range(4)])) for _ in "ab"]
    served = []
    for _ in range(4):
        claim = await claimed(ledger)
        served.append(claim.evaluation_id)
        await ledger.complete(claim)
    assert served == [first, second, first, second]


async def test_last_shard_opens_report_once(ledger: Ledger) -> None:
    await ledger.jobs.publish(TWO_SHARDS)
    first, second = await claimed(ledger), await claimed(ledger)
    assert not await ledger.complete(second)
    assert not await ledger.complete(second)
    closings = await asyncio.gather(*(ledger.complete(first) for _ in range(6)))
    assert closings.count(True) == 1
    assert (await claimed(ledger)).unit == REPORT_UNIT
    assert await ledger.claim() is None


async def test_released_shard_is_due_at_once_and_its_attempt_does_not_count(ledger: Ledger) -> None:
    await ledger.jobs.publish(job_of([A]))
    for _ in range(2 * ledger.limits.unit_attempts):
        claim = await claimed(ledger)
        assert (claim.attempts, claim.exhausted) == (1, False)
        assert await ledger.release(claim)
    assert not await ledger.release(claim)


async def test_shard_without_new_records_is_exhausted(store: RedisStore) -> None:
    ledger = Ledger(store, LedgerLimits(lease_s=0, unit_attempts=3))
    await ledger.jobs.publish(job_of([A]))
    assert [(await claimed(ledger)).exhausted for _ in range(4)] == [False, False, False, True]


async def test_recorded_sample_renews_attempts_of_its_shard(store: RedisStore) -> None:
    ledger = Ledger(store, LedgerLimits(lease_s=0, unit_attempts=2))
    evaluation_id = await ledger.jobs.publish(job_of([A, B]))
    for _ in range(2):
        await claimed(ledger)
    await ledger.record(shard_of(evaluation_id), Record(A, answer="done"))
    assert not (await claimed(ledger)).exhausted


async def test_report_that_killed_its_workers_is_exhausted(ledger: Ledger, store: RedisStore) -> None:
    await ledger.jobs.publish(TWO_SHARDS)
    await complete_shards(ledger)
    hasty = Ledger(store, LedgerLimits(lease_s=0, report_attempts=2))
    assert [(await claimed(hasty)).exhausted for _ in range(3)] == [False, False, True]


async def test_failing_report_is_postponed_until_patience_is_over(store: RedisStore) -> None:
    ledger = Ledger(store, LedgerLimits(first_pause_s=0.02, longest_pause_s=0.05))
    evaluation_id = await ledger.jobs.publish(TWO_SHARDS)
    await complete_shards(ledger)
    report = await claimed(ledger)
    assert await ledger.postpone_report(report, "disk full", 60) is Postponement.LATER
    assert await ledger.postpone_report(report, "disk full", 60) is Postponement.LOST
    assert await ledger.claim() is None
    assert "disk full" in (await ledger.jobs.get(evaluation_id)).stalled
    await asyncio.sleep(0.05)
    report = await claimed(ledger)
    assert (report.unit, report.attempts) == (REPORT_UNIT, 1)
    assert await ledger.postpone_report(report, "disk full", 0.01) is Postponement.OVER
    assert await ledger.jobs.conclude(evaluation_id, EvaluationState.FAILED, "disk full")
    job = await ledger.jobs.get(evaluation_id)
    assert (job.error, job.stalled) == ("disk full", "")


async def test_report_pauses_double_up_to_longest(store: RedisStore) -> None:
    ledger = Ledger(store, LedgerLimits(first_pause_s=10, longest_pause_s=30))
    evaluation_id = await ledger.jobs.publish(TWO_SHARDS)
    await complete_shards(ledger)
    pauses = []
    for _ in range(4):
        await ledger.postpone_report(await claimed(ledger), "disk full", 600)
        now = float((await store.redis.time())[0])
        pauses.append(round(await store.redis.zscore(key_of(evaluation_id, "units"), REPORT_UNIT) - now, -1))
        await ledger.jobs.retry_report(evaluation_id)
    assert pauses == [10, 20, 30, 30]


async def test_cancelled_job_is_ended_by_its_last_held_shard(ledger: Ledger) -> None:
    evaluation_id = await ledger.jobs.publish(TWO_SHARDS)
    claim = await claimed(ledger)
    await ledger.record(shard_of(evaluation_id), Record(A, answer="done"))
    assert await ledger.jobs.cancel(evaluation_id) is Cancellation.PENDING
    assert await ledger.begin_sample(claim, "b") is Start.CANCELLED
    assert await ledger.renew(claim) is LeaseState.CANCELLED
    assert await ledger.claim() is None
    assert await ledger.complete(claim)


async def test_cancelled_shard_of_dead_worker_is_closed_and_report_opened(store: RedisStore) -> None:
    ledger = Ledger(store, NO_LEASE)
    evaluation_id = await ledger.jobs.publish(job_of([A, B]))
    await ledger.record(shard_of(evaluation_id), Record(A, answer="done"))
    held = await claimed(Ledger(store))
    await ledger.jobs.cancel(evaluation_id)
    await ledger.renew(held)  # Its lease is over at once: the holder died.
    assert await ledger.claim() is None
    assert await ledger.backlog() == Backlog(jobs=1, waiting=1, held=0)
    assert (await claimed(ledger)).unit == REPORT_UNIT
