"""Clients for commands: one line that says which tier is not there, and how to start it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

from infra.contract.errors import UnavailableError
from infra.runtime.channel import ChannelOptions
from orchestrator.clients import AnswerClient, EvaluationClient, GenerationClient, RetrievalClient
from orchestrator.commands.targets import Target

C = TypeVar("C", RetrievalClient, GenerationClient, AnswerClient, EvaluationClient)


@asynccontextmanager
async def reach(client_class: type[C], target: Target) -> AsyncIterator[C]:
    """Yield a client of the tier. UnavailableError within says how to start the tier when nobody listens there."""
    options = ChannelOptions(target.address, tls_ca=target.tls_ca, token=target.token)
    async with client_class(options) as client:
        try:
            yield client
        except UnavailableError as error:
            if error.message.startswith(f"{target.address} cannot be reached"):
                raise UnavailableError(target.remedy) from error
            raise
