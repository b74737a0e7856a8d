"""Jobs on a real Redis: published once, cancelled, ended, retried, deleted, expired."""

from __future__ import annotations

import asyncio

import pytest

from infra.contract.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    NotFoundError,
)
from orchestrator.evaluation.job import EvaluationState
from orchestrator.evaluation.records import Record
from orchestrator.evaluation.spec import EvaluationSpec
from orchestrator.jobs.ledger.ledger import Ledger
from orchestrator.jobs.ledger.replies import Cancellation
from orchestrator.jobs.ledger.store import RedisStore, request_key
from orchestrator.jobs.ledger.types import REPORT_UNIT, Backlog, NewEvaluation
from tests.support.harness.job_ledger import (
    SPEC,
    TWO_SHARDS,
    A,
    B,
    C,
    D,
    claimed,
    complete_shards,
    repeated,
    shard_of,
)


async def test_published_job_is_queued_and_active(ledger: Ledger) -> None:
    evaluation_id = await ledger.jobs.publish(TWO_SHARDS)
    job = await ledger.jobs.get(evaluation_id)
    assert (job.state, job.total_samples, job.done_samples) == (EvaluationState.QUEUED, 4, 0)
    assert job.spec == SPEC
    assert await ledger.jobs.active() == [evaluation_id]
    assert await ledger.samples.shard(evaluation_id, "1") == [C, D]


async def test_plan_of_published_job_does_not_expire(ledger: Ledger, store: RedisStore) -> None:
    evaluation_id = await ledger.jobs.publish(TWO_SHARDS)
    assert await store.redis.ttl(f"loraretriever:evaluation:{{{evaluation_id}}}:shards") == -1


async def test_concurrent_requests_with_one_id_publish_one_job(ledger: Ledger, store: RedisStore) -> None:
    ids = await asyncio.gather(*(ledger.jobs.publish(TWO_SHARDS, "nightly") for _ in range(5)))
    assert len(set(ids)) == 1
    assert await ledger.jobs.active() == [ids[0]]
    plans = await store.redis.keys("*:shards")
    assert len(plans) == 1


async def test_request_id_of_another_spec_is_refused(ledger: Ledger) -> None:
    await ledger.jobs.publish(TWO_SHARDS, "nightly")
    other = EvaluationSpec(SPEC.datasets, SPEC.strategies, seed=1)
    with pytest.raises(AlreadyExistsError, match="nightly"):
        await ledger.jobs.publish(NewEvaluation(other, TWO_SHARDS.shards, "out"), "nightly")
    with pytest.raises(AlreadyExistsError, match="nightly"):
        await ledger.jobs.find_request("nightly", other)


async def test_repeated_publish_keeps_job_and_plan(
    store: RedisStore, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "run", repeated(store.run))
    evaluation_id = await ledger.jobs.publish(TWO_SHARDS, "nightly")
    assert await ledger.jobs.active() == [evaluation_id]
    assert await ledger.samples.shard(evaluation_id, "0") == [A, B]


async def test_unknown_job_is_not_found(ledger: Ledger) -> None:
    with pytest.raises(NotFoundError, match="nightly-1"):
        await ledger.jobs.get("nightly-1")


async def test_job_is_concluded_once(ledger: Ledger) -> None:
    evaluation_id = await ledger.jobs.publish(TWO_SHARDS)
    assert await ledger.jobs.conclude(evaluation_id, EvaluationState.SUCCEEDED)
    assert not await ledger.jobs.conclude(evaluation_id, EvaluationState.FAILED, "late")
    job = await ledger.jobs.get(evaluation_id)
    assert (job.state, job.error) == (EvaluationState.SUCCEEDED, "")
    assert job.end_time is not None
    assert await ledger.jobs.active() == []


async def test_failed_job_is_retried_with_its_records(ledger: Ledger) -> None:
    evaluation_id = await ledger.jobs.publish(TWO_SHARDS)
    await ledger.record(shard_of(evaluation_id), Record(A, answer="done"))
    with pytest.raises(FailedPreconditionError, match="queued; only one whose report failed"):
        await ledger.jobs.retry_report(evaluation_id)
    await complete_shards(ledger)
    await ledger.jobs.conclude(evaluation_id, EvaluationState.FAILED, "disk full")
    await ledger.jobs.retry_report(evaluation_id)
    job = await ledger.jobs.get(evaluation_id)
    assert (job.state, job.error, job.end_time) == (EvaluationState.RUNNING, "", None)
    assert (await claimed(ledger)).unit == REPORT_UNIT
    assert [record.answer for record in await ledger.samples.in_order(evaluation_id)] == ["done"]


async def test_postponed_report_is_retried_at_once_or_cancelled(ledger: Ledger) -> None:
    evaluation_id = await ledger.jobs.publish(TWO_SHARDS)
    await ledger.record(shard_of(evaluation_id), Record(A, answer="done"))
    await complete_shards(ledger)
    for _ in range(2):
        await ledger.postpone_report(await claimed(ledger), "disk full", 60)
        assert await ledger.backlog() == Backlog(jobs=1, waiting=0, held=0)
        await ledger.jobs.retry_report(evaluation_id)
    await ledger.postpone_report(await claimed(ledger), "disk full", 60)
    assert await ledger.jobs.cancel(evaluation_id) is Cancellation.FAILED
    job = await ledger.jobs.get(evaluation_id)
    assert (job.state, job.error) == (EvaluationState.FAILED, "the report was given up: disk full")
    assert await ledger.samples.recorded(evaluation_id, ["a"]) == {"a"}


async def test_deleted_job_leaves_no_keys(ledger: Ledger, store: RedisStore) -> None:
    evaluation_id = await ledger.jobs.publish(TWO_SHARDS, "nightly")
    with pytest.raises(FailedPreconditionError, match="cancel it first"):
        await ledger.jobs.delete(evaluation_id)
    await ledger.record(shard_of(evaluation_id), Record(A, answer="done"))
    await ledger.jobs.conclude(evaluation_id, EvaluationState.SUCCEEDED)
    await ledger.jobs.delete(evaluation_id)
    assert await store.redis.keys("*") == []
    with pytest.raises(NotFoundError):
        await ledger.jobs.get(evaluation_id)


async def test_cancel_before_any_record_ends_job_and_leaves_no_counters(ledger: Ledger, store: RedisStore) -> None:
    evaluation_id = await ledger.jobs.publish(TWO_SHARDS)
    claim = await claimed(ledger)
    await ledger.begin_sample(claim, "a")
    await ledger.release(claim)
    assert await ledger.jobs.cancel(evaluation_id) is Cancellation.CANCELLED
    assert (await ledger.jobs.get(evaluation_id)).state is EvaluationState.CANCELLED
    assert await ledger.jobs.active() == []
    assert await ledger.claim() is None
    assert [name.rpartition(":")[2] for name in sorted(await store.redis.keys("*{*"))] == ["job", "shards"]


async def test_cancel_between_shards_opens_report(ledger: Ledger) -> None:
    evaluation_id = await ledger.jobs.publish(TWO_SHARDS)
    claim = await claimed(ledger)
    await ledger.record(shard_of(evaluation_id), Record(A, answer="done"))
    await ledger.release(claim)
    assert await ledger.jobs.cancel(evaluation_id) is Cancellation.REPORT_DUE
    assert await ledger.jobs.cancel(evaluation_id) is Cancellation.PENDING
    assert (await claimed(ledger)).unit == REPORT_UNIT


@pytest.mark.parametrize("state", [EvaluationState.SUCCEEDED, EvaluationState.CANCELLED, EvaluationState.FAILED, None])
async def test_plan_records_and_request_id_expire_after_report_only(
    ledger: Ledger, store: RedisStore, state: EvaluationState | None
) -> None:
    evaluation_id = await ledger.jobs.publish(TWO_SHARDS, "nightly")
    if state is not None:
        await ledger.record(shard_of(evaluation_id), Record(A, answer="done"))
    names = await store.redis.keys("*:shards") + await store.redis.keys("*:records") + [request_key("nightly")]
    assert [await store.redis.ttl(name) for name in names] == [-1] * (2 if state is None else 3)
    if state is None:
        assert await ledger.jobs.cancel(evaluation_id) is Cancellation.CANCELLED
    else:
        assert await ledger.jobs.conclude(evaluation_id, state)
    for name in names:
        left_s = await store.redis.ttl(name)
        if state is EvaluationState.FAILED:
            assert left_s == -1
        else:
            assert ledger.limits.record_ttl_s - 60 < left_s <= ledger.limits.record_ttl_s
