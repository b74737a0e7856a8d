"""A real Redis for the tests of evaluation jobs, emptied before each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from infra.runtime.embedded_redis import embedded_redis
from orchestrator.jobs.ledger.ledger import Ledger
from orchestrator.jobs.ledger.store import RedisStore
from orchestrator.jobs.ledger.types import LedgerLimits


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
    """Return a ledger with long leases and few attempts."""
    return Ledger(store, LedgerLimits(lease_s=30, unit_attempts=3, sample_attempts=2))
