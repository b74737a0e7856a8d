"""Clients for commands: one line that says which tier is not there, and how to start it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

from infra.contract.errors import UnavailableError, UnreachableError
from orchestrator.cli.targets import Target
from orchestrator.clients.answer import AnswerClient
from orchestrator.clients.evaluation import EvaluationClient
from orchestrator.clients.retrieval import RetrievalClient

C = TypeVar("C", RetrievalClient, AnswerClient, EvaluationClient)


@asynccontextmanager
async def reach(client_class: type[C], target: Target) -> AsyncIterator[C]:
    """Yield a client of the tier. UnavailableError within says how to start the tier when nobody listens there."""
    async with client_class(target.channel) as client:
        try:
            yield client
        except UnreachableError as error:
            # A tier behind this one may be unreachable too; its error keeps its own message.
            if error.target == target.address:
                raise UnavailableError(target.remedy) from error
            raise
