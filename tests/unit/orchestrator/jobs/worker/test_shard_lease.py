"""The state of a shard lease, and calls of the ledger that wait for Redis."""

from __future__ import annotations

import asyncio
from itertools import permutations

import pytest

from infra.contract.errors import UnavailableError
from orchestrator.jobs.ledger.ledger import Ledger
from orchestrator.jobs.ledger.replies import LeaseState, Start
from orchestrator.jobs.ledger.store import RedisStore
from orchestrator.jobs.ledger.types import Claim, LedgerLimits
from orchestrator.jobs.worker import shard_lease
from orchestrator.jobs.worker.shard_lease import ShardLease, ShardLimits, ShardState, retry_while_unavailable
from tests.support.harness.job_ledger import A, claimed, job_of

STATES = {
    LeaseState.HELD: ShardState.ACTIVE,
    LeaseState.CANCELLED: ShardState.CANCELLED,
    LeaseState.LOST: ShardState.LOST,
}


async def lease_of(ledger: Ledger, stopping: asyncio.Event | None = None) -> ShardLease:
    await ledger.jobs.publish(job_of([A]))
    return ShardLease(ledger, await claimed(ledger), ShardLimits(stop_grace_s=0), stopping or asyncio.Event())


@pytest.mark.parametrize("replies", list(permutations(STATES)))
async def test_state_never_goes_back(ledger: Ledger, replies: tuple[LeaseState, ...]) -> None:
    lease = await lease_of(ledger)
    seen = []
    for reply in replies:
        lease.on_lease_state(reply)
        seen.append(lease.state)
        assert lease.draining.is_set() is not lease.is_active
    assert seen == sorted(seen)
    assert lease.state is ShardState.LOST


async def test_stopping_worker_drains_its_lease(ledger: Ledger) -> None:
    stopping = asyncio.Event()
    lease = await lease_of(ledger, stopping)
    async with lease.held(), asyncio.timeout(10):
        assert lease.is_active
        stopping.set()
        await lease.draining.wait()
    assert lease.state is ShardState.DRAINING


async def test_begin_after_cancellation_cancels_lease(ledger: Ledger) -> None:
    lease = await lease_of(ledger)
    await ledger.jobs.cancel(lease.claim.evaluation_id)
    assert await lease.begin("a") is Start.CANCELLED
    assert lease.state is ShardState.CANCELLED


async def test_begin_after_another_claim_loses_lease(ledger: Ledger) -> None:
    lease = await lease_of(ledger)
    await ledger.release(lease.claim)
    await claimed(ledger)
    assert await lease.begin("a") is Start.LOST
    assert lease.state is ShardState.LOST


async def test_begun_sample_is_unclaimed_when_lease_ends(ledger: Ledger) -> None:
    lease = await lease_of(ledger)
    evaluation_id = lease.claim.evaluation_id
    async with lease.held():
        assert await lease.begin("a") is Start.BEGUN
        assert await ledger.samples.begun(evaluation_id, ["a"]) == {"a"}
    assert await ledger.samples.begun(evaluation_id, ["a"]) == set()


async def test_try_whose_reply_is_lost_is_unclaimed(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    stopping = asyncio.Event()
    lease = await lease_of(ledger, stopping)
    begin_sample = ledger.begin_sample

    async def reply_lost(claim: Claim, key: str) -> Start:
        await begin_sample(claim, key)
        stopping.set()  # A stopping worker does not wait for Redis.
        raise UnavailableError("away")

    monkeypatch.setattr(ledger, "begin_sample", reply_lost)
    with pytest.raises(UnavailableError):
        async with lease.held():
            await lease.begin("a")
    assert await ledger.samples.begun(lease.claim.evaluation_id, ["a"]) == set()


async def test_try_is_unreturned_if_its_return_is_cancelled(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = await lease_of(ledger)
    assert await lease.begin("a") is Start.BEGUN
    called = asyncio.Event()

    async def hang(_claim: Claim, _key: str) -> None:
        called.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(ledger, "unclaim_sample", hang)
    unclaim = asyncio.create_task(lease.unclaim("a"))
    await called.wait()
    unclaim.cancel()
    with pytest.raises(asyncio.CancelledError):
        await unclaim
    assert lease.unreturned_tries == {(lease.claim, "a")}


async def test_expired_lease_is_lost_at_renewal(ledger: Ledger, store: RedisStore) -> None:
    short = Ledger(store, LedgerLimits(lease_s=0.05))
    lease = await lease_of(short)
    await asyncio.sleep(0.1)
    await claimed(ledger)
    async with lease.held(), asyncio.timeout(10):
        await lease.draining.wait()
    assert lease.state is ShardState.LOST


async def test_call_is_repeated_until_redis_is_back_or_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_lease, "AWAY_PAUSE_S", 0)
    failures = [UnavailableError("away")] * 3

    async def call() -> str:
        if failures:
            raise failures.pop()
        return "done"

    assert await retry_while_unavailable(call, lambda: False) == "done"
    failures.append(UnavailableError("away"))
    with pytest.raises(UnavailableError):
        await retry_while_unavailable(call, lambda: True)
