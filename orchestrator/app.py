"""The orchestrator's parts, assembled from its settings."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from starlette.types import ASGIApp

from infra.runtime.lifecycle import on_stop
from infra.runtime.server import GrpcServer
from orchestrator.answering.pipeline import Pipeline
from orchestrator.clients.generation import GenerationClient
from orchestrator.clients.retrieval import RetrievalClient
from orchestrator.evaluation.storage import absolute_uri
from orchestrator.gateway.app import gateway
from orchestrator.gateway.guard import GuardPolicy
from orchestrator.gateway.http_server import serving
from orchestrator.gateway.remote_images import ImageFetcher
from orchestrator.gateway.services import Services
from orchestrator.jobs.celery import CeleryDispatcher, make_app, queue_length
from orchestrator.jobs.event_loop import in_background
from orchestrator.jobs.ledger.ledger import Ledger
from orchestrator.jobs.ledger.store import RedisStore
from orchestrator.jobs.ledger.types import LedgerLimits
from orchestrator.jobs.planning import JobOptions
from orchestrator.jobs.provenance import System
from orchestrator.jobs.reconciler import Reconciler
from orchestrator.jobs.service import EvaluationJobs
from orchestrator.server import add_services
from orchestrator.settings import OrchestratorSettings


@dataclass(frozen=True)
class Orchestrator:
    """The gRPC server of both services, and the application of the HTTP gateway."""

    server: GrpcServer
    application: ASGIApp
    settings: OrchestratorSettings

    async def serve(self) -> None:
        """Serve both until a stop signal, then stop gracefully."""
        if not self.settings.gateway.address:
            await self.server.serve()
            return
        async with serving(self.application, self.settings.gateway.address, self.settings.server) as http:

            def stop() -> None:
                http.request_stop()
                self.server.request_stop()

            # Both at once: one after the other, their grace periods would add up.
            with on_stop(stop):
                await self.server.serve({"gateway": http.address})


@asynccontextmanager
async def orchestrator(settings: OrchestratorSettings, redis_url: str) -> AsyncIterator[Orchestrator]:
    """Yield a bound server of both services that does not serve yet, and the gateway; its reconciler runs."""
    server = GrpcServer(settings.server)
    dispatcher = CeleryDispatcher(make_app(redis_url, settings.visibility_timeout_s))
    async with AsyncExitStack() as stack:
        retrieval = await stack.enter_async_context(RetrievalClient(settings.channel(settings.retrieval_target)))
        generation = await stack.enter_async_context(GenerationClient(settings.channel(settings.generation_target)))
        store = await stack.enter_async_context(RedisStore(redis_url))
        ledger = Ledger(store, LedgerLimits.of(settings))
        jobs = EvaluationJobs(ledger, dispatcher, _job_options(settings), System(generation, retrieval))
        pipeline = Pipeline(retrieval, generation)
        add_services(server, pipeline, jobs, settings.answer_timeout_s)
        reconciler = Reconciler(ledger, dispatcher, partial(queue_length, store), settings.shard_resend_s)
        await stack.enter_async_context(in_background(reconciler.reconcile_forever(settings.reconcile_interval_s)))
        application = gateway(
            Services(
                pipeline, retrieval, generation, settings.answer_timeout_s, ImageFetcher(settings.gateway.image_hosts)
            ),
            GuardPolicy(settings.server.token, settings.gateway.max_body_bytes, settings.server.max_concurrent_calls),
        )
        yield Orchestrator(server, application, settings)


def _job_options(settings: OrchestratorSettings) -> JobOptions:
    return JobOptions(
        dataset_roots=settings.dataset_roots,
        output_uri=absolute_uri(settings.output_dir),
        shard_size=settings.shard_size,
        max_samples=settings.max_samples,
        max_dataset_bytes=settings.max_dataset_bytes,
    )
