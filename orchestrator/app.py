"""The orchestrator's parts, put together from its settings."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from infra.runtime.server import AioGrpcServer, aio_server
from orchestrator.answering.pipeline import Pipeline
from orchestrator.clients.generation import GenerationClient
from orchestrator.clients.retrieval import RetrievalClient
from orchestrator.evaluation.storage import absolute_uri
from orchestrator.jobs.celery import QUEUE, CeleryDispatcher, make_celery
from orchestrator.jobs.event_loop import in_background
from orchestrator.jobs.ledger.ledger import Ledger
from orchestrator.jobs.ledger.store import RedisStore
from orchestrator.jobs.provenance import System
from orchestrator.jobs.reconciler import Reconciler
from orchestrator.jobs.service import Evaluations, JobOptions
from orchestrator.server import add_services
from orchestrator.settings import OrchestratorSettings


@asynccontextmanager
async def orchestrator(settings: OrchestratorSettings, redis_url: str) -> AsyncIterator[AioGrpcServer]:
    """Yield a bound server of both services that does not serve yet, its reconciler running."""
    server = aio_server(settings.server)
    dispatcher = CeleryDispatcher(make_celery(redis_url, settings.visibility_timeout_s))
    async with AsyncExitStack() as stack:
        retrieval = await stack.enter_async_context(RetrievalClient(settings.channel(settings.retrieval_target)))
        generation = await stack.enter_async_context(GenerationClient(settings.channel(settings.generation_target)))
        ledger = Ledger(await stack.enter_async_context(RedisStore(redis_url)), settings.ledger_limits)
        evaluations = Evaluations(
            ledger,
            dispatcher,
            JobOptions(
                settings.dataset_roots,
                absolute_uri(settings.output_dir),
                settings.shard_size,
                settings.max_samples,
                settings.max_dataset_bytes,
            ),
            System(generation, retrieval),
        )
        add_services(server, Pipeline(retrieval, generation), evaluations, settings.answer_timeout_s)
        reconciler = Reconciler(ledger, dispatcher, QUEUE, settings.shard_resend_s)
        await stack.enter_async_context(in_background(reconciler.reconcile_forever(settings.reconcile_interval_s)))
        yield server
