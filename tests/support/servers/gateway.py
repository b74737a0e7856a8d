"""The HTTP gateway over loopback, in front of both services."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from infra.runtime.settings import ServerOptions
from orchestrator.answering.pipeline import Pipeline
from orchestrator.clients.generation import GenerationClient
from orchestrator.clients.retrieval import RetrievalClient
from orchestrator.gateway.app import gateway
from orchestrator.gateway.guard import GuardPolicy
from orchestrator.gateway.http_server import serving
from orchestrator.gateway.services import Services
from tests.support.servers.tiers import FakeTiers


@asynccontextmanager
async def gateway_server(
    tiers: FakeTiers,
    options: ServerOptions | None = None,
    *,
    max_body_bytes: int = 2**20,
    max_requests: int = 64,
    answer_timeout_s: float = 20,
) -> AsyncIterator[str]:
    """Yield the address of a gateway that answers with these services."""
    options = options or ServerOptions(shutdown_grace_s=0)
    async with (
        RetrievalClient(tiers.retrieval_target) as retrieval,
        GenerationClient(tiers.generation_target) as generation,
    ):
        services = Services(Pipeline(retrieval, generation), retrieval, generation, answer_timeout_s)
        app = gateway(services, GuardPolicy(options.token, max_body_bytes, max_requests))
        async with serving(app, "127.0.0.1:0", options) as server:
            yield server.address
