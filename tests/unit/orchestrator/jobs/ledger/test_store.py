"""The Redis client: what counts as unavailable, and when retrying stops."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from redis.exceptions import ResponseError

from infra.contract.errors import UnavailableError
from orchestrator.jobs.event_loop import in_background
from orchestrator.jobs.ledger.ledger import Ledger
from orchestrator.jobs.ledger.store import RedisStore
from orchestrator.jobs.ledger.types import LedgerLimits
from tests.support.harness.job_ledger import TWO_SHARDS


async def test_absent_redis_is_unavailable(tmp_path: Path) -> None:
    async with RedisStore(f"redis+socket://{tmp_path}/none.sock?virtual_host=0", retries=1) as store:
        with pytest.raises(UnavailableError, match="Redis"):
            await Ledger(store).jobs.get("any")


async def test_read_only_redis_is_unavailable_until_it_takes_changes(store: RedisStore) -> None:
    ledger = Ledger(store, LedgerLimits(lease_s=0.8))
    await store.redis.replicaof("127.0.0.1", 1)
    try:
        async with in_background(ledger.workers.beat_forever("worker")):
            with pytest.raises(UnavailableError, match="takes no changes now"):
                await ledger.jobs.publish(TWO_SHARDS)
            await store.redis.replicaof("NO", "ONE")
            async with asyncio.timeout(10):
                while not await ledger.workers.count():
                    await asyncio.sleep(0.05)
            assert await ledger.jobs.publish(TWO_SHARDS) in await ledger.jobs.active()
    finally:
        await store.redis.replicaof("NO", "ONE")


@pytest.mark.parametrize("reply", ["MISCONF Redis is configured to save", "BUSY Redis is busy running a script"])
async def test_passing_replies_are_unavailable_and_others_are_raised(store: RedisStore, reply: str) -> None:
    async def failing(text: str) -> None:
        raise ResponseError(text)

    with pytest.raises(UnavailableError, match="takes no changes now"):
        await store.call(failing(reply))
    with pytest.raises(ResponseError):
        await store.call(failing("ERR unknown command"))


async def test_stopped_retries_end_a_call_under_way(tmp_path: Path) -> None:
    async with RedisStore(f"redis+socket://{tmp_path}/none.sock?virtual_host=0", retries=10_000) as store:
        call = asyncio.create_task(Ledger(store).jobs.get("any"))
        await asyncio.sleep(0.2)
        assert not call.done()
        store.stop_retrying()
        with pytest.raises(UnavailableError, match="Redis"):
            async with asyncio.timeout(10):
                await call
