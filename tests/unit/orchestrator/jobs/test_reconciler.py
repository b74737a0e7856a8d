"""The reconciler: its gauges, and the units for which it wakes workers."""

from __future__ import annotations

import asyncio
from functools import partial

from prometheus_client import REGISTRY

from orchestrator.jobs.ledger.ledger import Ledger
from orchestrator.jobs.ledger.store import RedisStore
from orchestrator.jobs.reconciler import Reconciler
from tests.support.harness.job_ledger import (
    TWO_SHARDS,
    RecordingDispatcher,
    claimed,
    job_of,
    planned_sample,
)


async def queue_length(store: RedisStore) -> int:
    return int(await store.redis.llen("queue"))


async def test_gauges_show_units_jobs_and_workers(ledger: Ledger, store: RedisStore) -> None:
    def gauge(name: str) -> float | None:
        return REGISTRY.get_sample_value(f"loraretriever_evaluation_{name}")

    await ledger.jobs.publish(TWO_SHARDS)
    await claimed(ledger)
    await ledger.workers.beat("worker")
    dispatcher = RecordingDispatcher()
    assert await Reconciler(ledger, dispatcher, partial(queue_length, store), resend_s=30).reconcile() == 0
    assert (gauge("active_jobs"), gauge("running_units"), gauge("live_workers")) == (1, 1, 1)
    assert (gauge("queued_units"), dispatcher.woken) == (1, [])


async def test_workers_are_woken_for_units_missing_for_a_while(ledger: Ledger, store: RedisStore) -> None:
    dispatcher = RecordingDispatcher()
    reconciler = Reconciler(ledger, dispatcher, partial(queue_length, store), resend_s=0.05)
    await ledger.jobs.publish(job_of(*[[planned_sample(str(n))] for n in range(5)]))
    await store.redis.rpush("queue", "a message", "another")
    assert await reconciler.reconcile() == 0
    await asyncio.sleep(0.06)
    await claimed(ledger)  # One unit was missing only for a moment.
    assert await reconciler.reconcile() == 2
    await store.redis.rpush("queue", "a third", "a fourth")
    await asyncio.sleep(0.06)
    assert [await reconciler.reconcile() for _ in range(2)] == [0, 0]
    assert dispatcher.woken == [2]
