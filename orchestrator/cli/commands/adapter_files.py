"""`loraretriever adapters import` and `export`: many adapters at once, from a file and to one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from infra.contract.adapter import Adapter
from infra.contract.errors import LoraRetrieverError, UnavailableError
from orchestrator.cli import output as console
from orchestrator.cli.options.adapters import CatalogueFilter
from orchestrator.cli.options.binding import with_options
from orchestrator.cli.options.targets import Checker, GenerationCheck, RetrievalTier
from orchestrator.clients.retrieval import RetrievalClient
from orchestrator.registration.adapter_list import BadEntry, ListedAdapter, read_adapter_list, write_adapter_list


@with_options
def import_adapters(
    *,
    config: Annotated[
        Path, typer.Argument(help='JSON array of {"lora_name", "lora_path", "embedding_path", "description"}.')
    ],
    base_model: Annotated[
        str, typer.Option(help="Base model of all of them. Default: the one in their checkpoints.")
    ] = "",
    kind: Annotated[
        str,
        typer.Option("--kind", "--lora-type", help="Kind of all of them. Default: the entry's, or app for app_lora_x."),
    ] = "",
    prefix: Annotated[
        str,
        typer.Option(
            help="Precedes every id, so that configs of two base models with the same names fit side by side."
        ),
    ] = "",
    replace: Annotated[bool, typer.Option("--replace", help="Replace adapters of the same ids.")] = False,
    check: GenerationCheck,
    retrieval: RetrievalTier,
) -> None:
    """Register the adapters of a config file by their existing vectors.

    An entry that cannot be read or registered is reported and skipped; the exit status is then 1.
    """
    entries = read_adapter_list(config, base_model=base_model, kind=kind, prefix=prefix)
    registered: list[Adapter] = []
    failed: list[BadEntry] = []

    async def register(client: RetrievalClient) -> None:
        with Progress(console=console.progress(), transient=True) as progress:
            task = progress.add_task("registering", total=len(entries))
            async with check.checker() as checked:
                async for outcome in _register_all(client, entries, replace, checked):
                    (failed if isinstance(outcome, BadEntry) else registered).append(outcome)  # type: ignore[arg-type]
                    progress.advance(task)

    retrieval.call(register)
    for entry in failed:
        console.print_error(f"{config}[{entry.index}] {entry.name}: {entry.problem}")
    if retrieval.as_json:
        console.print_json({"registered": registered, "failed": failed})
    else:
        console.results().print(f"registered {len(registered)} of {len(entries)} adapters")
    if failed:
        raise typer.Exit(console.FAILED)


@with_options
def export_adapters(
    *,
    file: Annotated[Path, typer.Argument(help="JSON file to write; the vectors go into a folder next to it.")],
    catalogue: CatalogueFilter,
    retrieval: RetrievalTier,
) -> None:
    """Write adapters with their vectors into a file that `adapters import` reads."""

    async def fetch(client: RetrievalClient) -> list[ListedAdapter]:
        return [await client.get_vectors(adapter.adapter_id) for adapter in await catalogue.fetch(client)]

    listed = retrieval.call(fetch)
    write_adapter_list(file, listed)
    if retrieval.as_json:
        console.print_json({"file": file, "exported": [entry.adapter.adapter_id for entry in listed]})
    else:
        console.results().print(f"wrote {len(listed)} adapters to {file}")


async def _register_all(
    retrieval: RetrievalClient,
    entries: Sequence[tuple[int, ListedAdapter] | BadEntry],
    replace: bool,
    checked: Checker,
) -> AsyncIterator[Adapter | BadEntry]:
    """Yield the registered adapter of each entry, or the reason why there is none."""
    fingerprint = ""
    for entry in entries:
        if isinstance(entry, BadEntry):
            yield entry
            continue
        index, listed = entry
        adapter = listed.adapter
        if listed.fingerprint and not fingerprint:
            fingerprint = (await retrieval.get_catalogue()).embedder_fingerprint
        if listed.fingerprint not in ("", fingerprint):
            made_by = f"its vectors were made by [{listed.fingerprint}], the service embeds with [{fingerprint}]"
            yield BadEntry(index, adapter.adapter_id, f"{made_by}; register it by its examples with 'adapters add'")
            continue
        try:
            adapter = await checked(adapter)
            if replace:
                yield await retrieval.replace_adapter(adapter, vectors=listed.vectors)
            else:
                yield await retrieval.create_adapter_from_vectors(adapter, listed.vectors)
        except UnavailableError:
            raise
        except LoraRetrieverError as error:
            yield BadEntry(index, adapter.adapter_id, error.message)
