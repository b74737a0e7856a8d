"""Which workers are alive: each says so every now and then, and is forgotten when it falls silent."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from infra.contract.errors import UnavailableError
from infra.runtime.logs import get_logger
from orchestrator.jobs.ledger.store import WORKERS, RedisStore

log = get_logger(__name__)

FAREWELL_S = 2.0

# KEYS workers; ARGV worker ttl_s. Scored by the time (Redis's own clock, seconds) until which a worker counts as alive.
_BEAT = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), ARGV[1])
"""

# KEYS workers
_ALIVE = """
local time = redis.call('TIME')
return redis.call('ZCOUNT', KEYS[1], tonumber(time[1]) + tonumber(time[2]) / 1000000, '+inf')
"""


class Presence:
    """The workers that are alive. One that was killed counts for another `ttl_s`."""

    def __init__(self, store: RedisStore, ttl_s: float) -> None:
        self._store = store
        self._ttl_s = ttl_s

    async def alive(self) -> int:
        """Return how many workers are alive."""
        return int(await self._store.run(_ALIVE, [WORKERS], []))

    async def beat(self, worker: str) -> None:
        """Say that a worker is alive."""
        await self._store.run(_BEAT, [WORKERS], [worker, self._ttl_s])

    async def beat_forever(self, worker: str) -> None:
        """Say so until cancelled, then that it is gone. What goes wrong is logged and tried again."""
        try:
            while True:
                try:
                    await self.beat(worker)
                except UnavailableError as error:
                    log.warning("heartbeat failed", reason=error.message)
                except Exception:
                    log.exception("heartbeat failed")
                await asyncio.sleep(self._ttl_s / 4)
        finally:
            with suppress(UnavailableError, TimeoutError):
                async with asyncio.timeout(FAREWELL_S):
                    await self._store.call(self._store.redis.zrem(WORKERS, worker))
