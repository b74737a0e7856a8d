"""The heartbeats of workers."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from infra.contract.errors import UnavailableError
from infra.runtime.logs import get_logger
from orchestrator.jobs.ledger.store import WORKERS, RedisStore

log = get_logger(__name__)

_BEATS_PER_TTL = 4  # Two heartbeats in a row may fail before a live worker counts as dead.
_SIGN_OFF_TIMEOUT_S = 2.0  # A stopping worker does not wait for Redis; without a sign-off its heartbeat expires.


class WorkerPresence:
    """The workers that are alive. A worker that was killed counts for another `ttl_s`."""

    def __init__(self, store: RedisStore, ttl_s: float) -> None:
        self._store = store
        self._ttl_s = ttl_s

    async def count(self) -> int:
        """Return how many workers are alive."""
        return int(await self._store.run("count_workers", [WORKERS], []))

    async def beat(self, worker: str) -> None:
        """Mark a worker as alive."""
        await self._store.run("heartbeat", [WORKERS], [worker, self._ttl_s])

    async def beat_forever(self, worker: str) -> None:
        """Send heartbeats until cancelled, then sign off. Failures are logged and tried again."""
        try:
            while True:
                try:
                    await self.beat(worker)
                except UnavailableError as error:
                    log.warning("heartbeat_failed", reason=error.message)
                except Exception:
                    log.exception("heartbeat_failed")
                await asyncio.sleep(self._ttl_s / _BEATS_PER_TTL)
        finally:
            with suppress(UnavailableError, TimeoutError):
                async with asyncio.timeout(_SIGN_OFF_TIMEOUT_S):
                    await self._store.call(self._store.redis.zrem(WORKERS, worker))
