"""The HTTP gateway over loopback, in front of both services."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace

from infra.runtime.settings import ServerOptions
from orchestrator.answering.pipeline import Pipeline
from orchestrator.clients.generation import GenerationClient
from orchestrator.clients.retrieval import RetrievalClient
from orchestrator.gateway.app import gateway
from orchestrator.gateway.guard import GuardPolicy
from orchestrator.gateway.http_server import serving
from orchestrator.gateway.services import Services
from tests.support.servers.background import on_event_loop
from tests.support.servers.tiers import FakeTiers, fake_tiers, nothing


@dataclass(frozen=True)
class RunningGateway:
    """A gateway on an event loop of its own, and the services behind it, which `reset` restores."""

    url: str
    tiers: FakeTiers

    def reset(self) -> None:
        """Make the services answer normally again, and forget their calls."""
        generation = self.tiers.generation
        generation.failures.clear()
        generation.before = nothing
        generation.fails_after_text = generation.waits_after_text = generation.check_failure = None
        generation.calls = 0


@contextmanager
def running_gateway(retrieval_target: str = "") -> Iterator[RunningGateway]:
    """Run a gateway over fake services, or over a fake generation service and the given retrieval service."""

    @asynccontextmanager
    async def serve() -> AsyncIterator[RunningGateway]:
        async with fake_tiers() as tiers:
            behind = replace(tiers, retrieval_target=retrieval_target or tiers.retrieval_target)
            async with gateway_server(behind) as address:
                yield RunningGateway(f"http://{address}", tiers)

    with on_event_loop(serve) as gateway:
        yield gateway


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
