"""Heartbeats of workers on a real Redis."""

from __future__ import annotations

import asyncio

from orchestrator.jobs.event_loop import in_background
from orchestrator.jobs.ledger.ledger import Ledger
from orchestrator.jobs.ledger.store import RedisStore
from orchestrator.jobs.ledger.types import LedgerLimits

NO_LEASE = LedgerLimits(lease_s=0)


async def test_worker_is_alive_until_silent_or_signed_off(ledger: Ledger, store: RedisStore) -> None:
    assert await ledger.workers.count() == 0
    await ledger.workers.beat("first")
    await ledger.workers.beat("first")
    await Ledger(store, NO_LEASE).workers.beat("silent")
    assert await ledger.workers.count() == 1
    async with in_background(ledger.workers.beat_forever("second")):
        while await ledger.workers.count() < 2:
            await asyncio.sleep(0.01)
    assert await ledger.workers.count() == 1
