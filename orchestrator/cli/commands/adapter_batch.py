"""`loraretriever adapters add FOLDER`: register every adapter of a folder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import typer
from rich.progress import Progress

from infra.contract.adapter import Adapter
from infra.contract.errors import InvalidArgumentError, LoraRetrieverError, UnavailableError
from infra.contract.prompt import Prompt
from orchestrator.cli import output as console
from orchestrator.cli.options.targets import Checker, GenerationCheck, RetrievalTier
from orchestrator.clients.retrieval import RetrievalClient
from orchestrator.registration.adapter_folders import FoundAdapter, WithoutExamples


@dataclass(frozen=True)
class NotRegistered:
    """An adapter that was not registered, and why."""

    name: str
    problem: str


@dataclass(frozen=True)
class Batch:
    """How the adapters of a folder are registered: their descriptions, their prompts, and what happens to old ones."""

    describe: Callable[[FoundAdapter], Adapter]
    prompts: Callable[[FoundAdapter], list[Prompt]]
    replace: bool


def register_batch(
    found: Sequence[FoundAdapter | WithoutExamples], batch: Batch, check: GenerationCheck, retrieval: RetrievalTier
) -> None:
    """Register the adapters one by one and report those that could not be. Exit with status 1 if there are any."""
    registered: list[Adapter] = []
    failed: list[NotRegistered] = []

    async def register(client: RetrievalClient) -> None:
        with Progress(console=console.progress(), transient=True) as progress:
            task = progress.add_task("registering", total=len(found))
            async with check.checker() as checked:
                async for outcome in _register_all(client, found, batch, checked):
                    match outcome:
                        case NotRegistered():
                            failed.append(outcome)
                        case Adapter():
                            registered.append(outcome)
                    progress.update(task, advance=1)

    retrieval.call(register)
    for adapter in failed:
        console.print_error(f"{adapter.name}: {adapter.problem}")
    if retrieval.as_json:
        console.print_json({"registered": registered, "failed": failed})
    else:
        console.results().print(f"registered {len(registered)} of {len(found)} adapters")
    if failed:
        raise typer.Exit(console.FAILED)


async def _register_all(
    client: RetrievalClient, found: Sequence[FoundAdapter | WithoutExamples], batch: Batch, checked: Checker
) -> AsyncIterator[Adapter | NotRegistered]:
    """Yield the registered adapter of each folder, or the reason why there is none. Raises UnavailableError."""
    for item in found:
        if isinstance(item, WithoutExamples):
            yield NotRegistered(item.name, item.problem)
            continue
        try:
            prompts = await asyncio.to_thread(batch.prompts, item)
            adapter = await checked(batch.describe(item))
            if batch.replace:
                yield await client.replace_adapter(adapter, prompts, [])
            else:
                yield await client.create_adapter(adapter, prompts)
        except UnavailableError:
            raise
        except InvalidArgumentError as error:
            yield NotRegistered(item.name, error.description)
        except LoraRetrieverError as error:
            yield NotRegistered(item.name, error.message)
