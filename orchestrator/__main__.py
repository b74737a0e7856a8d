"""`python -m orchestrator`: answers and evaluation jobs over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from typing import Any

from infra.runtime.embedded_redis import embedded_redis
from infra.runtime.logs import get_logger
from infra.runtime.main import run_tier
from infra.runtime.server import ServerOptions, aio_server
from orchestrator.celery_app import QUEUE, CeleryDispatcher, make_celery
from orchestrator.clients import GenerationClient, RetrievalClient
from orchestrator.evaluation.jobs import Evaluations, JobOptions
from orchestrator.evaluation.ledger import Ledger
from orchestrator.evaluation.ledger_store import RedisStore
from orchestrator.evaluation.reconciler import reconcile_forever
from orchestrator.evaluation.storage import absolute_uri
from orchestrator.pipeline import Pipeline
from orchestrator.server import add_services
from orchestrator.settings import OrchestratorSettings

log = get_logger(__name__)


def serve(settings: OrchestratorSettings) -> None:
    """Serve until a stop signal comes."""
    with _redis(settings) as redis_url:
        asyncio.run(_serve(settings, redis_url))


async def _serve(settings: OrchestratorSettings, redis_url: str) -> None:
    server = aio_server(ServerOptions.from_settings(settings))
    dispatcher = CeleryDispatcher(make_celery(redis_url, settings.visibility_timeout_s))
    async with AsyncExitStack() as stack:
        retrieval = await stack.enter_async_context(RetrievalClient(settings.channel(settings.retrieval_target)))
        generation = await stack.enter_async_context(GenerationClient(settings.channel(settings.generation_target)))
        ledger = Ledger(await stack.enter_async_context(RedisStore(redis_url)), settings.ledger_limits)
        options = JobOptions(settings.dataset_roots, absolute_uri(settings.output_dir), settings.shard_size)
        evaluations = Evaluations(ledger, dispatcher, options, base_model=lambda: generation.base_model(5.0))
        add_services(server, Pipeline(retrieval, generation), evaluations, settings.answer_timeout_s)
        reconciling = reconcile_forever(ledger, dispatcher, QUEUE, settings.reconcile_interval_s)
        await stack.enter_async_context(_in_background(reconciling))
        await server.serve()


@contextmanager
def _redis(settings: OrchestratorSettings) -> Iterator[str]:
    if settings.redis_url:
        yield settings.redis_url
        return
    with embedded_redis(settings.redis_dir) as url:
        log.info("embedded Redis runs; give workers its address", redis_url=url)
        yield url


@asynccontextmanager
async def _in_background(coroutine: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(coroutine)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


if __name__ == "__main__":
    run_tier(serve, OrchestratorSettings)
