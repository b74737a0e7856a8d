"""The ledger on a real Redis: what is counted once, who holds what, and what is sent again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from infra.contract.errors import AlreadyExistsError, InternalError, NotFoundError, UnavailableError
from infra.runtime.embedded_redis import embedded_redis
from orchestrator.evaluation.answering import failed
from orchestrator.evaluation.job import EvaluationState
from orchestrator.evaluation.ledger import Ledger
from orchestrator.evaluation.ledger_scripts import FINISH
from orchestrator.evaluation.ledger_store import RedisStore, request_key
from orchestrator.evaluation.ledger_types import Cancellation, Claim, Lease, LedgerLimits, NewEvaluation, Start
from orchestrator.evaluation.reconciler import reconcile
from orchestrator.evaluation.records import Record, Sample
from orchestrator.evaluation.spec import AnswerStrategy, DatasetSpec, EvaluatedStrategy, EvaluationSpec, Protocol
from orchestrator.event_loop import in_background

STRATEGY = EvaluatedStrategy(AnswerStrategy.BASE)
SPEC = EvaluationSpec((DatasetSpec("gmail", "gmail.jsonl"),), (STRATEGY,))
LIMITS = LedgerLimits(lease_s=30, resend_s=30, unit_attempts=3, sample_attempts=2)
NO_LEASE = LedgerLimits(lease_s=0, resend_s=0)


def sample(key: str) -> Sample:
    return Sample(
        key=key,
        dataset="gmail",
        kind="",
        episode_id=key,
        cluster=key,
        protocol=Protocol.STEP,
        step=0,
        step_count=1,
        strategy=STRATEGY,
        images=(),
        text="do it",
        truth="Wait for response",
    )


A, B, C, D = (sample(key) for key in "abcd")
JOB = NewEvaluation(SPEC, [[A, B], [C, D]], "out")


class NoQueue:
    """Takes no work."""

    def send(self, evaluation_id: str, units: Sequence[str]) -> None:
        raise AssertionError(f"{units} of {evaluation_id} were sent")


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with embedded_redis(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[RedisStore]:
    async with RedisStore(redis_url) as opened:
        await opened.redis.flushall()
        yield opened


@pytest.fixture
def ledger(store: RedisStore) -> Ledger:
    return Ledger(store, LIMITS)


async def test_published_job_is_queued_and_active(ledger: Ledger) -> None:
    evaluation_id = await ledger.publish(JOB)
    job = await ledger.get(evaluation_id)
    assert (job.state, job.total_samples, job.done_samples) == (EvaluationState.QUEUED, 4, 0)
    assert job.spec == SPEC
    assert await ledger.active() == [evaluation_id]
    assert await ledger.shard(evaluation_id, "1") == [C, D]
    assert await ledger.keys_in_order(evaluation_id) == ["a", "b", "c", "d"]


async def test_plan_of_a_published_job_does_not_expire(ledger: Ledger, store: RedisStore) -> None:
    evaluation_id = await ledger.publish(JOB)
    assert await store.redis.ttl(f"loraretriever:evaluation:{{{evaluation_id}}}:shards") == -1


async def test_request_id_publishes_one_job_however_often_and_at_once(ledger: Ledger, store: RedisStore) -> None:
    ids = await asyncio.gather(*(ledger.publish(JOB, "nightly") for _ in range(5)))
    assert len(set(ids)) == 1
    assert await ledger.active() == [ids[0]]
    plans = await store.redis.keys("*:shards")
    assert len(plans) == 1


async def test_request_id_of_another_spec_is_refused(ledger: Ledger) -> None:
    await ledger.publish(JOB, "nightly")
    other = EvaluationSpec(SPEC.datasets, SPEC.strategies, seed=1)
    with pytest.raises(AlreadyExistsError, match="nightly"):
        await ledger.publish(NewEvaluation(other, JOB.shards, "out"), "nightly")
    with pytest.raises(AlreadyExistsError, match="nightly"):
        await ledger.find_request("nightly", other)


async def test_unknown_job_is_not_found(ledger: Ledger) -> None:
    with pytest.raises(NotFoundError, match="nightly-1"):
        await ledger.get("nightly-1")


async def test_shard_is_granted_to_one_worker_alone(ledger: Ledger) -> None:
    evaluation_id = await ledger.publish(JOB)
    claims = await asyncio.gather(*(ledger.claim(evaluation_id, "0", f"worker-{n}") for n in range(8)))
    assert sorted(claims) == [Claim.GRANTED, *[Claim.HELD] * 7]
    assert (await ledger.get(evaluation_id)).state is EvaluationState.RUNNING


async def test_shard_whose_lease_ran_out_is_granted_to_another_and_lost_to_the_first(store: RedisStore) -> None:
    ledger = Ledger(store, NO_LEASE)
    evaluation_id = await ledger.publish(JOB)
    assert await ledger.claim(evaluation_id, "0", "first") is Claim.GRANTED
    assert await ledger.claim(evaluation_id, "0", "second") is Claim.GRANTED
    assert await ledger.renew(evaluation_id, "0", "first") is Lease.LOST
    assert await ledger.renew(evaluation_id, "0", "second") is Lease.HELD
    assert await ledger.begin(evaluation_id, "0", "first", "a") is Start.LOST


async def test_record_counts_once_whoever_brings_it(ledger: Ledger) -> None:
    evaluation_id = await ledger.publish(JOB)
    await ledger.claim(evaluation_id, "0", "worker")
    record = Record(A, answer="Wait for response")
    stored = await asyncio.gather(*(ledger.record(evaluation_id, "0", record) for _ in range(10)))
    assert stored.count(True) == 1
    job = await ledger.get(evaluation_id)
    assert (job.done_samples, job.failed_samples) == (1, 0)


async def test_first_record_of_a_sample_stays(ledger: Ledger) -> None:
    evaluation_id = await ledger.publish(JOB)
    await ledger.record(evaluation_id, "0", Record(A, answer="first"))
    assert not await ledger.record(evaluation_id, "0", failed(A, InternalError("late")))
    assert (await ledger.records(evaluation_id))["a"].answer == "first"
    assert (await ledger.get(evaluation_id)).failed_samples == 0


async def test_failed_sample_is_done_and_counted_as_failed(ledger: Ledger) -> None:
    evaluation_id = await ledger.publish(JOB)
    await ledger.record(evaluation_id, "0", failed(A, InternalError("no answer")))
    job = await ledger.get(evaluation_id)
    assert (job.done_samples, job.failed_samples) == (1, 1)


async def test_last_shard_opens_the_finish_exactly_once(ledger: Ledger) -> None:
    evaluation_id = await ledger.publish(JOB)
    assert not await ledger.close(evaluation_id, "1")
    assert not await ledger.close(evaluation_id, "1")
    closings = await asyncio.gather(*(ledger.close(evaluation_id, "0") for _ in range(6)))
    assert closings.count(True) == 1
    assert await ledger.claim(evaluation_id, FINISH, "worker") is Claim.GRANTED
    assert await ledger.claim(evaluation_id, "0", "worker") is Claim.OVER


async def test_job_is_concluded_once_and_then_inactive(ledger: Ledger) -> None:
    evaluation_id = await ledger.publish(JOB)
    assert await ledger.conclude(evaluation_id, EvaluationState.SUCCEEDED)
    assert not await ledger.conclude(evaluation_id, EvaluationState.FAILED, "late")
    job = await ledger.get(evaluation_id)
    assert (job.state, job.error) == (EvaluationState.SUCCEEDED, "")
    assert job.end_time is not None
    assert await ledger.active() == []


async def test_silent_worker_s_shard_is_sent_again_even_while_the_queue_is_full(store: RedisStore) -> None:
    ledger = Ledger(store, LedgerLimits(lease_s=0, resend_s=30))
    evaluation_id = await ledger.publish(JOB)
    await ledger.claim(evaluation_id, "1", "worker")
    assert await ledger.overdue(evaluation_id, queue_empty=False) == ["1"]
    assert await ledger.overdue(evaluation_id, queue_empty=False) == []


async def test_shard_that_nobody_took_is_sent_again_only_when_the_queue_is_empty(store: RedisStore) -> None:
    ledger = Ledger(store, NO_LEASE)
    evaluation_id = await ledger.publish(JOB)
    assert await ledger.overdue(evaluation_id, queue_empty=False) == []
    assert await ledger.overdue(evaluation_id, queue_empty=True) == ["0", "1"]


async def test_shard_in_good_hands_is_not_sent_again(ledger: Ledger) -> None:
    evaluation_id = await ledger.publish(JOB)
    await ledger.claim(evaluation_id, "0", "worker")
    assert await ledger.overdue(evaluation_id, queue_empty=True) == []


async def test_released_shard_is_due_at_once_and_its_attempt_is_given_back(ledger: Ledger) -> None:
    evaluation_id = await ledger.publish(JOB)
    for _ in range(2 * LIMITS.unit_attempts):
        assert await ledger.claim(evaluation_id, "0", "worker") is Claim.GRANTED
        assert await ledger.release(evaluation_id, "0", "worker")
    assert await ledger.overdue(evaluation_id, queue_empty=True) == ["0"]
    assert not await ledger.release(evaluation_id, "0", "worker")


async def test_shard_that_never_records_anything_is_exhausted(store: RedisStore) -> None:
    ledger = Ledger(store, LedgerLimits(lease_s=0, unit_attempts=3))
    evaluation_id = await ledger.publish(JOB)
    claims = [await ledger.claim(evaluation_id, "0", f"worker-{n}") for n in range(4)]
    assert claims == [*[Claim.GRANTED] * 3, Claim.EXHAUSTED]


async def test_recorded_sample_gives_its_shard_new_attempts(store: RedisStore) -> None:
    ledger = Ledger(store, LedgerLimits(lease_s=0, unit_attempts=2))
    evaluation_id = await ledger.publish(JOB)
    await ledger.claim(evaluation_id, "0", "first")
    await ledger.claim(evaluation_id, "0", "second")
    await ledger.record(evaluation_id, "0", Record(A, answer="done"))
    assert await ledger.claim(evaluation_id, "0", "third") is Claim.GRANTED


async def test_sample_that_was_begun_and_not_recorded_is_remembered_and_given_up_in_the_end(ledger: Ledger) -> None:
    evaluation_id = await ledger.publish(JOB)
    await ledger.claim(evaluation_id, "0", "worker")
    starts = [await ledger.begin(evaluation_id, "0", "worker", "a") for _ in range(3)]
    assert starts == [Start.BEGUN, Start.BEGUN, Start.EXHAUSTED]
    assert await ledger.begun(evaluation_id, ["a", "b"]) == {"a"}
    await ledger.record(evaluation_id, "0", Record(A, answer="done"))
    assert await ledger.begin(evaluation_id, "0", "worker", "a") is Start.RECORDED
    assert await ledger.begun(evaluation_id, ["a", "b"]) == set()
    assert await ledger.recorded(evaluation_id, ["a", "b"]) == {"a"}


async def test_abandoned_sample_is_as_if_never_begun(ledger: Ledger) -> None:
    evaluation_id = await ledger.publish(JOB)
    await ledger.claim(evaluation_id, "0", "worker")
    await ledger.begin(evaluation_id, "0", "worker", "a")
    await ledger.abandon(evaluation_id, "a")
    assert await ledger.begun(evaluation_id, ["a"]) == set()


async def test_cancel_lets_shards_under_way_end_and_the_last_of_them_finish_the_job(ledger: Ledger) -> None:
    evaluation_id = await ledger.publish(JOB)
    await ledger.claim(evaluation_id, "0", "worker")
    await ledger.record(evaluation_id, "0", Record(A, answer="done"))
    assert await ledger.cancel(evaluation_id) is Cancellation.PENDING
    assert await ledger.begin(evaluation_id, "0", "worker", "b") is Start.CANCELLED
    assert await ledger.renew(evaluation_id, "0", "worker") is Lease.CANCELLED
    assert await ledger.claim(evaluation_id, "1", "other") is Claim.OVER
    assert await ledger.close(evaluation_id, "0")


async def test_cancelled_shard_of_a_dead_worker_is_not_sent_again_but_the_finish_is(store: RedisStore) -> None:
    ledger = Ledger(store, LedgerLimits(lease_s=0, resend_s=30))
    evaluation_id = await ledger.publish(JOB)
    await ledger.claim(evaluation_id, "0", "worker")
    await ledger.record(evaluation_id, "0", Record(A, answer="done"))
    await ledger.cancel(evaluation_id)
    assert await ledger.overdue(evaluation_id, queue_empty=True) == [FINISH]


async def test_cancel_before_any_sample_ends_the_job(ledger: Ledger) -> None:
    evaluation_id = await ledger.publish(JOB)
    assert await ledger.cancel(evaluation_id) is Cancellation.ENDED
    assert (await ledger.get(evaluation_id)).state is EvaluationState.CANCELLED
    assert await ledger.active() == []
    assert await ledger.claim(evaluation_id, "0", "worker") is Claim.OVER


async def test_cancel_between_shards_sends_the_finish(ledger: Ledger) -> None:
    evaluation_id = await ledger.publish(JOB)
    await ledger.claim(evaluation_id, "0", "worker")
    await ledger.record(evaluation_id, "0", Record(A, answer="done"))
    await ledger.release(evaluation_id, "0", "worker")
    assert await ledger.cancel(evaluation_id) is Cancellation.FINISH
    assert await ledger.cancel(evaluation_id) is Cancellation.PENDING


@pytest.mark.parametrize("state", [EvaluationState.SUCCEEDED, EvaluationState.CANCELLED, EvaluationState.FAILED, None])
async def test_plan_records_and_request_id_expire_only_with_the_job_s_end_and_later_when_it_failed(
    ledger: Ledger, store: RedisStore, state: EvaluationState | None
) -> None:
    evaluation_id = await ledger.publish(JOB, "nightly")
    if state is not None:
        await ledger.record(evaluation_id, "0", Record(A, answer="done"))
    names = await store.redis.keys("*:shards") + await store.redis.keys("*:records") + [request_key("nightly")]
    assert [await store.redis.ttl(name) for name in names] == [-1] * (2 if state is None else 3)
    if state is None:
        assert await ledger.cancel(evaluation_id) is Cancellation.ENDED
    else:
        assert await ledger.conclude(evaluation_id, state)
    limit = LIMITS.failed_ttl_s if state is EvaluationState.FAILED else LIMITS.record_ttl_s
    for name in names:
        assert limit - 60 < await store.redis.ttl(name) <= limit


async def test_nothing_is_recorded_once_the_report_is_being_written(ledger: Ledger) -> None:
    evaluation_id = await ledger.publish(JOB)
    await ledger.close(evaluation_id, "0")
    await ledger.close(evaluation_id, "1")
    assert not await ledger.record(evaluation_id, "0", Record(A, answer="late"))


async def test_redis_that_is_away_is_unavailable(tmp_path: Path) -> None:
    async with RedisStore(f"redis+socket://{tmp_path}/none.sock?virtual_host=0", retries=1) as store:
        with pytest.raises(UnavailableError, match="Redis"):
            await Ledger(store).get("any")


async def test_publish_that_is_sent_again_keeps_its_job_and_plan(
    store: RedisStore, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = store.run

    async def run_twice(script: str, names: Sequence[str], arguments: Sequence[Any]) -> Any:
        await run(script, names, arguments)
        return await run(script, names, arguments)

    monkeypatch.setattr(store, "run", run_twice)
    evaluation_id = await ledger.publish(JOB, "nightly")
    assert await ledger.active() == [evaluation_id]
    assert await ledger.shard(evaluation_id, "0") == [A, B]


async def test_finish_that_nobody_took_is_sent_again_even_while_the_queue_is_full(store: RedisStore) -> None:
    ledger = Ledger(store, NO_LEASE)
    evaluation_id = await ledger.publish(JOB)
    await ledger.close(evaluation_id, "0")
    await ledger.close(evaluation_id, "1")
    assert await ledger.overdue(evaluation_id, queue_empty=False) == [FINISH]


async def test_worker_is_alive_until_it_falls_silent_or_says_that_it_goes(ledger: Ledger, store: RedisStore) -> None:
    assert await ledger.workers.alive() == 0
    await ledger.workers.beat("first")
    await ledger.workers.beat("first")
    await Ledger(store, NO_LEASE).workers.beat("silent")
    assert await ledger.workers.alive() == 1
    async with in_background(ledger.workers.beat_forever("second")):
        while await ledger.workers.alive() < 2:
            await asyncio.sleep(0.01)
    assert await ledger.workers.alive() == 1


async def test_reconciler_tells_prometheus_of_units_jobs_and_workers(ledger: Ledger) -> None:
    def gauge(name: str) -> float | None:
        return REGISTRY.get_sample_value(f"loraretriever_evaluation_{name}")

    evaluation_id = await ledger.publish(JOB)
    await ledger.claim(evaluation_id, "0", "worker")
    await ledger.workers.beat("worker")
    assert await reconcile(ledger, NoQueue(), "queue") == 0
    assert (gauge("active_jobs"), gauge("running_units"), gauge("live_workers")) == (1, 1, 1)
    assert gauge("queued_units") == 0
