"""Fixtures of evaluation jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from infra.runtime.embedded_redis import embedded_redis
from tests.support.harness.job_processes import Cluster, cluster


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    """Yield a Redis for this test only."""
    with embedded_redis(tmp_path / "redis") as url:
        yield url


@pytest.fixture
async def running(tmp_path: Path, redis_url: str) -> AsyncIterator[Cluster]:
    """Yield fake tiers and an orchestrator on that Redis, without workers."""
    async with cluster(tmp_path, redis_url) as started:
        yield started
