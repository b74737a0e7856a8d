"""`loraretriever adapters import` and `export`: many adapters at once, from a file and to one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from infra.contract.adapter import Adapter
from infra.contract.errors import LoraRetrieverError, UnavailableError
from orchestrator.cli import output as console
from orchestrator.cli.connect import reach
from orchestrator.cli.targets import AsJson, RetrievalTarget, target
from orchestrator.clients.retrieval import RetrievalClient
from orchestrator.registration.adapter_list import BadEntry, ListedAdapter, read_adapter_list, write_adapter_list


def import_adapters(
    *,
    config: Annotated[
        Path, typer.Argument(help='JSON array of {"lora_name", "lora_path", "embedding_path", "description"}.')
    ],
    base_model: Annotated[str, typer.Option(help="Of all of them. Default: as their checkpoints say.")] = "",
    kind: Annotated[
        str, typer.Option("--kind", "--lora-type", help="Of all of them. Default: the entry's, or app for app_lora_x.")
    ] = "",
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of adapters of the same names.")] = False,
    retrieval_target: RetrievalTarget = "",
    as_json: AsJson = False,
) -> None:
    """Register the adapters of a config file by their ready-made vectors.

    An entry that cannot be read or registered is reported, and the others go on; the exit status is then 1.
    """
    entries = read_adapter_list(config, base_model=base_model, kind=kind)
    registered: list[Adapter] = []
    failed: list[BadEntry] = []

    async def register() -> None:
        with Progress(console=console.progress(), transient=True) as progress:
            task = progress.add_task("registering", total=len(entries))
            async with reach(RetrievalClient, target("retrieval", retrieval_target)) as retrieval:
                async for outcome in _registered(retrieval, entries, replace):
                    (failed if isinstance(outcome, BadEntry) else registered).append(outcome)  # type: ignore[arg-type]
                    progress.advance(task)

    asyncio.run(register())
    for bad in failed:
        console.print_error(f"{config}[{bad.index}] {bad.name}: {bad.problem}")
    if as_json:
        console.print_json({"registered": registered, "failed": failed})
    else:
        console.results().print(f"registered {len(registered)} of {len(entries)} adapters")
    if failed:
        raise typer.Exit(console.FAILED)


def export_adapters(
    *,
    file: Annotated[Path, typer.Argument(help="JSON file to write; the vectors go into a folder beside it.")],
    kind: Annotated[str, typer.Option("--kind", "--lora-type", help="Only of this kind.")] = "",
    tag: Annotated[list[str] | None, typer.Option(help="Only with this tag; may be repeated.")] = None,
    base_model: Annotated[str, typer.Option(help="Only of this base model.")] = "",
    retrieval_target: RetrievalTarget = "",
    as_json: AsJson = False,
) -> None:
    """Write adapters with their vectors into a file that `adapters import` reads."""

    async def fetch() -> list[ListedAdapter]:
        async with reach(RetrievalClient, target("retrieval", retrieval_target)) as retrieval:
            adapters = await retrieval.list_adapters(base_model, "" if kind == "all" else kind, tag or ())
            return [await retrieval.get_vectors(each.adapter_id) for each in adapters]

    listed = asyncio.run(fetch())
    write_adapter_list(file, listed)
    if as_json:
        console.print_json({"file": file, "exported": [each.adapter.adapter_id for each in listed]})
    else:
        console.results().print(f"wrote {len(listed)} adapters to {file}")


async def _registered(
    retrieval: RetrievalClient, entries: Sequence[tuple[int, ListedAdapter] | BadEntry], replace: bool
) -> AsyncIterator[Adapter | BadEntry]:
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
            if replace:
                yield await retrieval.replace_adapter(adapter, vectors=listed.vectors)
            else:
                yield await retrieval.create_adapter_from_vectors(adapter, listed.vectors)
        except UnavailableError:
            raise
        except LoraRetrieverError as error:
            yield BadEntry(index, adapter.adapter_id, error.message)
