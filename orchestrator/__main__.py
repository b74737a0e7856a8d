"""`python -m orchestrator`: answers and evaluation jobs over gRPC, and the HTTP gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from infra.runtime.embedded_redis import embedded_redis
from infra.runtime.logs import get_logger
from infra.runtime.main import run_tier
from orchestrator.app import orchestrator
from orchestrator.settings import OrchestratorSettings

log = get_logger(__name__)


def serve(settings: OrchestratorSettings) -> None:
    """Serve until a stop signal arrives."""
    with _redis(settings) as redis_url:
        asyncio.run(_serve(settings, redis_url))


async def _serve(settings: OrchestratorSettings, redis_url: str) -> None:
    async with orchestrator(settings, redis_url) as tier:
        await tier.serve()


@contextmanager
def _redis(settings: OrchestratorSettings) -> Iterator[str]:
    if settings.redis_url:
        yield settings.redis_url
        return
    with embedded_redis(settings.redis_dir) as url:
        log.info("embedded_redis_started", redis_url=url)  # Workers need the address.
        yield url


if __name__ == "__main__":
    run_tier(serve, OrchestratorSettings)
