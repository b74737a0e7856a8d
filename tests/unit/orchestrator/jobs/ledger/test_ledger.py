"""The ledger on a real Redis: what is counted once, who holds what, and what is sent again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from redis.exceptions import ResponseError

from infra.contract.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InternalError,
    NotFoundError,
    UnavailableError,
)
from infra.runtime.embedded_redis import embedded_redis
from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.evaluation.records import Record, Sample
from orchestrator.evaluation.spec import DatasetSpec, EvaluatedStrategy, EvaluationSpec, PromptProtocol
from orchestrator.jobs.event_loop import in_background
from orchestrator.jobs.job import EvaluationState
from orchestrator.jobs.ledger.ledger import Ledger
from orchestrator.jobs.ledger.store import RedisStore, key_of, request_key
from orchestrator.jobs.ledger.types import (
    FINISH,
    Backlog,
    Cancellation,
    Lease,
    LedgerLimits,
    NewEvaluation,
    Start,
    Taken,
)
from orchestrator.jobs.ledger.units import Postponed
from orchestrator.jobs.reconciler import Reconciler
from orchestrator.jobs.worker.sample_runner import failed

STRATEGY = EvaluatedStrategy(AnswerStrategy.BASE)
SPEC = EvaluationSpec((DatasetSpec("gmail", "gmail.jsonl"),), (STRATEGY,))
LIMITS = LedgerLimits(lease_s=30, unit_attempts=3, sample_attempts=2)
NO_LEASE = LedgerLimits(lease_s=0)


def sample(key: str) -> Sample:
    return Sample(
        key=key,
        dataset="gmail",
        kind="",
        episode_id=key,
        cluster=key,
        protocol=PromptProtocol.STEP,
        step=0,
        step_count=1,
        strategy=STRATEGY,
        images=(),
        text="do it",
        truth="Wait for response",
    )


A, B, C, D = (sample(key) for key in "abcd")
JOB = NewEvaluation(SPEC, [[A, B], [C, D]], "out")


class Bell:
    """Counts how many units workers were woken for."""

    def __init__(self) -> None:
        self.rung: list[int] = []

    def wake(self, count: int) -> int:
        self.rung.append(count)
        return count


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


async def take(ledger: Ledger) -> Taken:
    """Return the unit that is most due, which there must be."""
    taken = await ledger.units.take()
    assert taken is not None
    return taken


async def close_shards(ledger: Ledger, job: NewEvaluation = JOB) -> list[bool]:
    """Take and close every shard of the only job."""
    return [await ledger.units.close(await take(ledger)) for _ in job.shards]


async def test_published_job_is_queued_and_active(ledger: Ledger) -> None:
    evaluation_id = await ledger.publish(JOB)
    job = await ledger.get(evaluation_id)
    assert (job.state, job.total_samples, job.done_samples) == (EvaluationState.QUEUED, 4, 0)
    assert job.spec == SPEC
    assert await ledger.active() == [evaluation_id]
    assert await ledger.samples.shard(evaluation_id, "1") == [C, D]


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


async def test_every_shard_is_taken_by_one_worker_alone(ledger: Ledger) -> None:
    evaluation_id = await ledger.publish(JOB)
    taken = [each for each in await asyncio.gather(*(ledger.units.take() for _ in range(8))) if each is not None]
    assert sorted((each.evaluation_id, each.unit) for each in taken) == [(evaluation_id, "0"), (evaluation_id, "1")]
    assert (await ledger.get(evaluation_id)).state is EvaluationState.RUNNING


async def test_shard_whose_lease_ran_out_is_taken_by_another_and_lost_to_the_first(store: RedisStore) -> None:
    ledger = Ledger(store, NO_LEASE)
    await ledger.publish(NewEvaluation(SPEC, [[A]], "out"))
    first, second = await take(ledger), await take(ledger)
    assert (first.unit, second.unit) == ("0", "0")
    assert await ledger.units.renew(first) is Lease.LOST
    assert await ledger.units.renew(second) is Lease.HELD
    assert await ledger.samples.begin(first, "a") is Start.LOST
    assert not await ledger.units.release(first)


async def test_jobs_take_turns_and_a_report_comes_before_any_shard(ledger: Ledger) -> None:
    huge = await ledger.publish(NewEvaluation(SPEC, [[sample(f"h{n}")] for n in range(50)], "out"))
    small = await ledger.publish(JOB)
    taken = [await take(ledger) for _ in range(5)]
    assert [each.evaluation_id for each in taken] == [huge, small, huge, small, huge]
    assert [each.unit for each in taken] == ["0", "0", "1", "1", "2"]
    for each in (taken[1], taken[3]):
        await ledger.units.close(each)
    report = await take(ledger)
    assert (report.evaluation_id, report.unit) == (small, FINISH)


async def test_record_counts_once_whoever_brings_it(ledger: Ledger) -> None:
    evaluation_id = await ledger.publish(JOB)
    record = Record(A, answer="Wait for response")
    stored = await asyncio.gather(*(ledger.samples.record(evaluation_id, "0", record) for _ in range(10)))
    assert stored.count(True) == 1
    job = await ledger.get(evaluation_id)
    assert (job.done_samples, job.failed_samples) == (1, 0)


async def test_first_record_of_a_sample_stays(ledger: Ledger) -> None:
    evaluation_id = await ledger.publish(JOB)
    await ledger.samples.record(evaluation_id, "0", Record(A, answer="first"))
    assert not await ledger.samples.record(evaluation_id, "0", failed(A, InternalError("late")))
    assert (await ledger.samples.records_of(evaluation_id, ["a"]))["a"].answer == "first"
    assert (await ledger.get(evaluation_id)).failed_samples == 0


async def test_failed_sample_is_done_and_counted_as_failed(ledger: Ledger) -> None:
    evaluation_id = await ledger.publish(JOB)
    await ledger.samples.record(evaluation_id, "0", failed(A, InternalError("no answer")))
    job = await ledger.get(evaluation_id)
    assert (job.done_samples, job.failed_samples) == (1, 1)


async def test_records_come_back_as_their_samples_were_planned(ledger: Ledger) -> None:
    evaluation_id = await ledger.publish(JOB)
    for each in (D, A, C):
        await ledger.samples.record(evaluation_id, "0", Record(each, answer=each.key))
    assert [record.answer for record in await ledger.samples.in_order(evaluation_id)] == ["a", "c", "d"]


async def test_last_shard_opens_the_report_exactly_once(ledger: Ledger) -> None:
    await ledger.publish(JOB)
    first, second = await take(ledger), await take(ledger)
    assert not await ledger.units.close(second)
    assert not await ledger.units.close(second)
    closings = await asyncio.gather(*(ledger.units.close(first) for _ in range(6)))
    assert closings.count(True) == 1
    assert (await take(ledger)).unit == FINISH
    assert await ledger.units.take() is None


async def test_job_is_concluded_once_and_then_inactive(ledger: Ledger) -> None:
    evaluation_id = await ledger.publish(JOB)
    assert await ledger.conclude(evaluation_id, EvaluationState.SUCCEEDED)
    assert not await ledger.conclude(evaluation_id, EvaluationState.FAILED, "late")
    job = await ledger.get(evaluation_id)
    assert (job.state, job.error) == (EvaluationState.SUCCEEDED, "")
    assert job.end_time is not None
    assert await ledger.active() == []


async def test_released_shard_is_due_at_once_and_its_attempt_is_given_back(ledger: Ledger) -> None:
    await ledger.publish(NewEvaluation(SPEC, [[A]], "out"))
    for _ in range(2 * LIMITS.unit_attempts):
        taken = await take(ledger)
        assert (taken.attempts, taken.exhausted) == (1, False)
        assert await ledger.units.release(taken)
    assert not await ledger.units.release(taken)


async def test_shard_that_never_records_anything_is_exhausted(store: RedisStore) -> None:
    ledger = Ledger(store, LedgerLimits(lease_s=0, unit_attempts=3))
    await ledger.publish(NewEvaluation(SPEC, [[A]], "out"))
    assert [(await take(ledger)).exhausted for _ in range(4)] == [False, False, False, True]


async def test_recorded_sample_gives_its_shard_new_attempts(store: RedisStore) -> None:
    ledger = Ledger(store, LedgerLimits(lease_s=0, unit_attempts=2))
    evaluation_id = await ledger.publish(NewEvaluation(SPEC, [[A, B]], "out"))
    for _ in range(2):
        await take(ledger)
    await ledger.samples.record(evaluation_id, "0", Record(A, answer="done"))
    assert not (await take(ledger)).exhausted


async def test_report_that_ended_its_workers_too_often_is_exhausted(store: RedisStore) -> None:
    ledger = Ledger(store, LIMITS)
    await ledger.publish(JOB)
    await close_shards(ledger)
    hasty = Ledger(store, LedgerLimits(lease_s=0, finish_attempts=2))
    assert [(await take(hasty)).exhausted for _ in range(3)] == [False, False, True]


async def test_report_that_cannot_be_stored_is_put_off_for_longer_and_longer_and_then_given_up(
    store: RedisStore,
) -> None:
    ledger = Ledger(store, LedgerLimits(first_pause_s=0.02, longest_pause_s=0.05))
    evaluation_id = await ledger.publish(JOB)
    await close_shards(ledger)
    report = await take(ledger)
    assert await ledger.units.postpone(report, "disk full", 60) is Postponed.LATER
    assert await ledger.units.postpone(report, "disk full", 60) is Postponed.LOST
    assert await ledger.units.take() is None
    assert "disk full" in (await ledger.get(evaluation_id)).stalled
    await asyncio.sleep(0.05)
    report = await take(ledger)
    assert (report.unit, report.attempts) == (FINISH, 1)
    assert await ledger.units.postpone(report, "disk full", 0.01) is Postponed.OVER
    assert await ledger.conclude(evaluation_id, EvaluationState.FAILED, "disk full")
    job = await ledger.get(evaluation_id)
    assert (job.error, job.stalled) == ("disk full", "")


async def test_failed_job_is_retried_and_its_records_are_there(ledger: Ledger) -> None:
    evaluation_id = await ledger.publish(JOB)
    await ledger.samples.record(evaluation_id, "0", Record(A, answer="done"))
    with pytest.raises(FailedPreconditionError, match="queued; only one whose report failed"):
        await ledger.reopen(evaluation_id)
    await close_shards(ledger)
    await ledger.conclude(evaluation_id, EvaluationState.FAILED, "disk full")
    await ledger.reopen(evaluation_id)
    job = await ledger.get(evaluation_id)
    assert (job.state, job.error, job.end_time) == (EvaluationState.RUNNING, "", None)
    assert (await take(ledger)).unit == FINISH
    assert [record.answer for record in await ledger.samples.in_order(evaluation_id)] == ["done"]


async def test_deleted_job_leaves_nothing_behind(ledger: Ledger, store: RedisStore) -> None:
    evaluation_id = await ledger.publish(JOB, "nightly")
    with pytest.raises(FailedPreconditionError, match="cancel it first"):
        await ledger.delete(evaluation_id)
    await ledger.samples.record(evaluation_id, "0", Record(A, answer="done"))
    await ledger.conclude(evaluation_id, EvaluationState.SUCCEEDED)
    await ledger.delete(evaluation_id)
    assert await store.redis.keys("*") == []
    with pytest.raises(NotFoundError):
        await ledger.get(evaluation_id)


async def test_sample_that_was_begun_and_not_recorded_is_remembered_and_given_up_in_the_end(
    ledger: Ledger, store: RedisStore
) -> None:
    evaluation_id = await ledger.publish(JOB)
    taken = await take(ledger)
    assert [await ledger.samples.begin(taken, "a") for _ in range(3)] == [Start.BEGUN] * 3  # Sent again, counted once.
    starts = []
    for owner in ("second", "third"):
        taken = replace(taken, owner=owner)
        await store.redis.hset(key_of(evaluation_id, "owners"), "0", owner)
        starts.append(await ledger.samples.begin(taken, "a"))
    assert starts == [Start.BEGUN, Start.EXHAUSTED]
    assert await ledger.samples.begun(evaluation_id, ["a", "b"]) == {"a"}
    await ledger.samples.record(evaluation_id, "0", Record(A, answer="done"))
    assert await ledger.samples.begin(taken, "a") is Start.RECORDED
    assert await ledger.samples.begun(evaluation_id, ["a", "b"]) == set()
    assert await ledger.samples.recorded(evaluation_id, ["a", "b"]) == {"a"}


async def test_abandoned_sample_is_as_if_never_begun(ledger: Ledger, store: RedisStore) -> None:
    evaluation_id = await ledger.publish(JOB)
    taken = await take(ledger)
    await ledger.samples.begin(taken, "a")
    for _ in range(2):
        await ledger.samples.abandon(taken, "a")
    assert await ledger.samples.begun(evaluation_id, ["a"]) == set()
    assert await store.redis.keys("*:tries") == []


async def test_cancel_lets_shards_under_way_end_and_the_last_of_them_finish_the_job(ledger: Ledger) -> None:
    evaluation_id = await ledger.publish(JOB)
    taken = await take(ledger)
    await ledger.samples.record(evaluation_id, "0", Record(A, answer="done"))
    assert await ledger.cancel(evaluation_id) is Cancellation.PENDING
    assert await ledger.samples.begin(taken, "b") is Start.CANCELLED
    assert await ledger.units.renew(taken) is Lease.CANCELLED
    assert await ledger.units.take() is None
    assert await ledger.units.close(taken)


async def test_cancelled_shard_of_a_dead_worker_is_taken_by_nobody_and_the_report_is(store: RedisStore) -> None:
    ledger = Ledger(store, NO_LEASE)
    evaluation_id = await ledger.publish(NewEvaluation(SPEC, [[A, B]], "out"))
    await ledger.samples.record(evaluation_id, "0", Record(A, answer="done"))
    held = await take(Ledger(store, LIMITS))
    await ledger.cancel(evaluation_id)
    await ledger.units.renew(held)  # Its lease is over at once: the holder died.
    assert await ledger.units.take() is None
    assert await ledger.units.backlog() == Backlog(jobs=1, waiting=1, held=0)
    assert (await take(ledger)).unit == FINISH


async def test_cancel_before_any_sample_ends_the_job_and_leaves_no_counters(ledger: Ledger, store: RedisStore) -> None:
    evaluation_id = await ledger.publish(JOB)
    taken = await take(ledger)
    await ledger.samples.begin(taken, "a")
    await ledger.units.release(taken)
    assert await ledger.cancel(evaluation_id) is Cancellation.ENDED
    assert (await ledger.get(evaluation_id)).state is EvaluationState.CANCELLED
    assert await ledger.active() == []
    assert await ledger.units.take() is None
    assert [name.rpartition(":")[2] for name in sorted(await store.redis.keys("*{*"))] == ["job", "shards"]


async def test_cancel_between_shards_opens_the_report(ledger: Ledger) -> None:
    evaluation_id = await ledger.publish(JOB)
    taken = await take(ledger)
    await ledger.samples.record(evaluation_id, "0", Record(A, answer="done"))
    await ledger.units.release(taken)
    assert await ledger.cancel(evaluation_id) is Cancellation.FINISH
    assert await ledger.cancel(evaluation_id) is Cancellation.PENDING
    assert (await take(ledger)).unit == FINISH


@pytest.mark.parametrize("state", [EvaluationState.SUCCEEDED, EvaluationState.CANCELLED, EvaluationState.FAILED, None])
async def test_plan_records_and_request_id_expire_once_the_report_is_stored_and_never_before(
    ledger: Ledger, store: RedisStore, state: EvaluationState | None
) -> None:
    evaluation_id = await ledger.publish(JOB, "nightly")
    if state is not None:
        await ledger.samples.record(evaluation_id, "0", Record(A, answer="done"))
    names = await store.redis.keys("*:shards") + await store.redis.keys("*:records") + [request_key("nightly")]
    assert [await store.redis.ttl(name) for name in names] == [-1] * (2 if state is None else 3)
    if state is None:
        assert await ledger.cancel(evaluation_id) is Cancellation.ENDED
    else:
        assert await ledger.conclude(evaluation_id, state)
    for name in names:
        left_s = await store.redis.ttl(name)
        if state is EvaluationState.FAILED:
            assert left_s == -1
        else:
            assert LIMITS.record_ttl_s - 60 < left_s <= LIMITS.record_ttl_s


async def test_nothing_is_recorded_once_the_report_is_being_written(ledger: Ledger) -> None:
    evaluation_id = await ledger.publish(JOB)
    await close_shards(ledger)
    assert not await ledger.samples.record(evaluation_id, "0", Record(A, answer="late"))


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
    assert await ledger.samples.shard(evaluation_id, "0") == [A, B]


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


async def test_server_that_takes_no_changes_is_unavailable_and_used_again_once_it_does(store: RedisStore) -> None:
    ledger = Ledger(store, LedgerLimits(lease_s=0.8))
    await store.redis.replicaof("127.0.0.1", 1)
    try:
        async with in_background(ledger.workers.beat_forever("worker")):
            with pytest.raises(UnavailableError, match="takes no changes now"):
                await ledger.publish(JOB)
            await store.redis.replicaof("NO", "ONE")
            async with asyncio.timeout(10):
                while not await ledger.workers.alive():
                    await asyncio.sleep(0.05)
            assert await ledger.publish(JOB) in await ledger.active()
    finally:
        await store.redis.replicaof("NO", "ONE")


async def test_reconciler_tells_prometheus_of_units_jobs_and_workers(ledger: Ledger) -> None:
    def gauge(name: str) -> float | None:
        return REGISTRY.get_sample_value(f"loraretriever_evaluation_{name}")

    await ledger.publish(JOB)
    await take(ledger)
    await ledger.workers.beat("worker")
    bell = Bell()
    assert await Reconciler(ledger, bell, "queue", resend_s=30).reconcile() == 0
    assert (gauge("active_jobs"), gauge("running_units"), gauge("live_workers")) == (1, 1, 1)
    assert (gauge("queued_units"), bell.rung) == (1, [])


async def test_reconciler_wakes_workers_for_what_is_missing_from_the_queue_for_a_while(
    ledger: Ledger, store: RedisStore
) -> None:
    bell = Bell()
    reconciler = Reconciler(ledger, bell, "queue", resend_s=0.05)
    await ledger.publish(NewEvaluation(SPEC, [[sample(str(n))] for n in range(5)], "out"))
    await store.redis.rpush("queue", "a message", "another")
    assert await reconciler.reconcile() == 0
    await asyncio.sleep(0.06)
    await take(ledger)  # What was missing for a moment only is not missed.
    assert await reconciler.reconcile() == 2
    await store.redis.rpush("queue", "a third", "a fourth")
    await asyncio.sleep(0.06)
    assert [await reconciler.reconcile() for _ in range(2)] == [0, 0]
    assert bell.rung == [2]


async def test_unit_that_is_taken_twice_by_one_call_is_the_same(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ledger.publish(JOB)
    store = ledger.units._store
    run = store.run

    async def run_twice(script: str, names: Sequence[str], arguments: Sequence[Any]) -> Any:
        await run(script, names, arguments)
        return await run(script, names, arguments)

    with monkeypatch.context() as patched:
        patched.setattr(store, "run", run_twice)
        first = await take(ledger)
    assert (await take(ledger)).unit != first.unit


async def test_late_record_does_not_bring_a_deleted_job_back(ledger: Ledger, store: RedisStore) -> None:
    evaluation_id = await ledger.publish(JOB)
    await ledger.conclude(evaluation_id, EvaluationState.SUCCEEDED)
    await ledger.delete(evaluation_id)
    assert not await ledger.samples.record(evaluation_id, "0", Record(A, answer="late"))
    assert await store.redis.keys("*") == []


async def test_job_whose_report_is_put_off_is_retried_at_once_or_cancelled(ledger: Ledger) -> None:
    evaluation_id = await ledger.publish(JOB)
    await ledger.samples.record(evaluation_id, "0", Record(A, answer="done"))
    await close_shards(ledger)
    for _ in range(2):
        await ledger.units.postpone(await take(ledger), "disk full", 60)
        assert await ledger.units.backlog() == Backlog(jobs=1, waiting=0, held=0)
        await ledger.reopen(evaluation_id)
    await ledger.units.postpone(await take(ledger), "disk full", 60)
    assert await ledger.cancel(evaluation_id) is Cancellation.GIVEN_UP
    job = await ledger.get(evaluation_id)
    assert (job.state, job.error) == (EvaluationState.FAILED, "the report was given up: disk full")
    assert await ledger.samples.recorded(evaluation_id, ["a"]) == {"a"}


async def test_pauses_of_a_report_grow_to_their_longest(store: RedisStore) -> None:
    ledger = Ledger(store, LedgerLimits(first_pause_s=10, longest_pause_s=30))
    evaluation_id = await ledger.publish(JOB)
    await close_shards(ledger)
    pauses = []
    for _ in range(4):
        await ledger.units.postpone(await take(ledger), "disk full", 600)
        now = float((await store.redis.time())[0])
        pauses.append(round(await store.redis.zscore(key_of(evaluation_id, "units"), FINISH) - now, -1))
        await ledger.reopen(evaluation_id)
    assert pauses == [10, 20, 30, 30]


async def test_jobs_take_turns_however_few_shards_are_under_way(ledger: Ledger) -> None:
    first, second = [
        await ledger.publish(NewEvaluation(SPEC, [[sample(f"{n}")] for n in range(4)], "out")) for _ in "ab"
    ]
    served = []
    for _ in range(4):
        taken = await take(ledger)
        served.append(taken.evaluation_id)
        await ledger.units.close(taken)
    assert served == [first, second, first, second]


@pytest.mark.parametrize("reply", ["MISCONF Redis is configured to save", "BUSY Redis is busy running a script"])
async def test_replies_that_pass_are_unavailable_and_others_are_not(store: RedisStore, reply: str) -> None:
    async def failing(text: str) -> None:
        raise ResponseError(text)

    with pytest.raises(UnavailableError, match="takes no changes now"):
        await store.call(failing(reply))
    with pytest.raises(ResponseError):
        await store.call(failing("ERR unknown command"))


async def test_tries_of_owners_that_live_on_are_taken_back_in_any_order(ledger: Ledger, store: RedisStore) -> None:
    evaluation_id = await ledger.publish(NewEvaluation(SPEC, [[A]], "out"))
    taken = await take(ledger)
    owners = []
    for number in range(4):  # Each loses its shard to the next and learns of it late.
        owners.append(replace(taken, owner=f"owner-{number}"))
        await store.redis.hset(key_of(evaluation_id, "owners"), "0", owners[-1].owner)
        assert await ledger.samples.begin(owners[-1], "a") is Start.BEGUN
        for earlier in owners[:-1]:
            await ledger.samples.abandon(earlier, "a")
    await ledger.samples.abandon(owners[-1], "a")
    assert await ledger.samples.begun(evaluation_id, ["a"]) == set()
