"""Where each tier is reached: by flag, else environment, else a stack that runs here, else the default port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import typer

from infra.contract.adapter import Adapter
from infra.contract.errors import UnavailableError, UnimplementedError, UnreachableError
from infra.runtime.channel import ChannelOptions
from orchestrator.cli import output as console
from orchestrator.cli.settings import environment
from orchestrator.clients.answer import AnswerClient
from orchestrator.clients.evaluation import EvaluationClient
from orchestrator.clients.generation import GenerationClient
from orchestrator.clients.retrieval import RetrievalClient
from orchestrator.devstack.demo_world import WORLDS
from orchestrator.devstack.stack import read_state

Tier = Literal["retrieval", "generation", "orchestrator"]
DEFAULTS: Mapping[str, str] = {
    "retrieval": "127.0.0.1:50051",
    "generation": "127.0.0.1:50052",
    "orchestrator": "127.0.0.1:50053",
    "gateway": "127.0.0.1:50080",
}
UP_DIR = Path(".loraretriever/up")
STACK_DIRS = (UP_DIR, *(kind.work_dir for kind in WORLDS.values()))

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]

C = TypeVar("C", RetrievalClient, GenerationClient, AnswerClient, EvaluationClient)
T = TypeVar("T")

Checker = Callable[[Adapter], Awaitable[Adapter]]
"""Checks an adapter that is to be registered, and returns it as it should be."""


@dataclass(frozen=True)
class Target:
    """A tier's address, and how to start that tier when it does not answer."""

    tier: Tier
    channel: ChannelOptions

    @property
    def address(self) -> str:
        """host:port."""
        return self.channel.target

    @property
    def remedy(self) -> str:
        """What to do when nothing listens at the address, in one sentence."""
        return (
            f"the {self.tier} tier does not answer at {self.address}; start it with 'loraretriever up' "
            f"(or 'loraretriever serve {self.tier}'), or name another address with --{self.tier}-target"
        )


def target(tier: Tier, flag: str = "") -> Target:
    """Return the target of a tier; `flag` is the address given on the command line, if any."""
    settings = environment().client
    stack = next((state for folder in STACK_DIRS if (state := read_state(folder)) is not None), None)
    running = str(getattr(stack, tier)) if stack is not None else ""
    address = flag or str(getattr(settings, f"{tier}_target")) or running or DEFAULTS[tier]
    channel = ChannelOptions(
        address,
        tls_ca=settings.tls_ca,
        tls_certificate=settings.tls_certificate,
        tls_key=settings.tls_key,
        token=settings.token.get_secret_value() if settings.token else None,
    )
    return Target(tier, channel)


@asynccontextmanager
async def connect(client_class: type[C], tier: Target) -> AsyncIterator[C]:
    """Yield a client of a tier. Raises UnavailableError with the remedy if the tier itself cannot be reached."""
    async with client_class(tier.channel) as client:
        try:
            yield client
        except UnreachableError as error:
            # A tier behind this one may be unreachable too; its error keeps its own message.
            if error.target == tier.address:
                raise UnavailableError(tier.remedy) from error
            raise


@dataclass(frozen=True)
class RetrievalTier:
    """The retrieval service that a command calls, and the form of its output."""

    retrieval_target: Annotated[
        str,
        typer.Option(
            "--retrieval-target",
            help=f"host:port of the retrieval service (default: the local one, or {DEFAULTS['retrieval']}) "
            "[LORARETRIEVER_CLIENT_RETRIEVAL_TARGET]",
            show_default=False,
        ),
    ] = ""
    as_json: AsJson = False

    def call(self, function: Callable[[RetrievalClient], Awaitable[T]]) -> T:
        """Return what `function` returns for a client of the service."""

        async def run() -> T:
            async with connect(RetrievalClient, target("retrieval", self.retrieval_target)) as client:
                return await function(client)

        return asyncio.run(run())


@dataclass(frozen=True)
class GenerationCheck:
    """Whether and where adapters are checked before they are registered."""

    generation_target: Annotated[
        str,
        typer.Option(
            "--generation-target",
            help="host:port of the generation service that is to serve the adapter (default: the local one, or "
            f"{DEFAULTS['generation']}) [LORARETRIEVER_CLIENT_GENERATION_TARGET]",
            show_default=False,
        ),
    ] = ""
    check: Annotated[
        bool, typer.Option(help="Refuse an adapter that the generation service cannot serve, if that service answers.")
    ] = True

    @asynccontextmanager
    async def checker(self) -> AsyncIterator[Checker]:
        """Yield a function that checks an adapter and returns it under the name of the running base model.

        It raises the error that a request for the adapter would get. If no generation service answers, it returns the
        adapter unchecked and prints a note, once.
        """
        if not self.check:
            yield _unchecked
            return
        tier = target("generation", self.generation_target)
        async with GenerationClient(tier.channel) as client:
            is_reachable = True

            async def checked(adapter: Adapter) -> Adapter:
                nonlocal is_reachable
                if not is_reachable:
                    return adapter
                try:
                    return replace(adapter, base_model=await client.check_adapter(adapter))
                except (UnreachableError, UnimplementedError):
                    is_reachable = False
                    console.note(
                        f"not checked: no generation service answers at {tier.address}; 'loraretriever inspect' tells "
                        "whether an adapter can be served"
                    )
                    return adapter

            yield checked


async def _unchecked(adapter: Adapter) -> Adapter:
    return adapter


@dataclass(frozen=True)
class OrchestratorTier:
    """The orchestrator that a command calls, and the form of its output."""

    orchestrator_target: Annotated[
        str,
        typer.Option(
            "--orchestrator-target",
            help=f"host:port of the orchestrator (default: the local one, or {DEFAULTS['orchestrator']}) "
            "[LORARETRIEVER_CLIENT_ORCHESTRATOR_TARGET]",
            show_default=False,
        ),
    ] = ""
    as_json: AsJson = False

    def call_answers(self, function: Callable[[AnswerClient], Awaitable[T]]) -> T:
        """Return what `function` returns for a client of the AnswerService."""
        return self._call(AnswerClient, function)

    def call_evaluations(self, function: Callable[[EvaluationClient], Awaitable[T]]) -> T:
        """Return what `function` returns for a client of the EvaluationService."""
        return self._call(EvaluationClient, function)

    def _call(self, client_class: type[C], function: Callable[[C], Awaitable[T]]) -> T:
        async def run() -> T:
            async with connect(client_class, target("orchestrator", self.orchestrator_target)) as client:
                return await function(client)

        return asyncio.run(run())
