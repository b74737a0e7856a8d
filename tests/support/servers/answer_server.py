"""An AnswerService over loopback gRPC, in front of both services."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from loraretriever.v1 import orchestrator_service_pb2_grpc as pb_grpc

from infra.runtime.server import GrpcServer
from infra.runtime.settings import ServerOptions
from orchestrator.answering.pipeline import Pipeline
from orchestrator.clients.generation import GenerationClient
from orchestrator.clients.retrieval import RetrievalClient
from orchestrator.server import ANSWER_SERVICE, AnswerServicer
from tests.support.servers.tiers import FakeTiers


@asynccontextmanager
async def answer_server(tiers: FakeTiers) -> AsyncIterator[str]:
    """Yield the address of an orchestrator that answers with these services."""
    async with (
        RetrievalClient(tiers.retrieval_target) as retrieval,
        GenerationClient(tiers.generation_target) as generation,
    ):
        server = GrpcServer(ServerOptions(shutdown_grace_s=0))
        servicer = AnswerServicer(Pipeline(retrieval, generation), timeout_s=20)
        server.add(servicer, pb_grpc.add_AnswerServiceServicer_to_server, ANSWER_SERVICE)
        async with server:
            yield server.address
