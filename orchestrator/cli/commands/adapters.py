"""`loraretriever adapters ...`: the catalogue."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from infra.contract.adapter import Adapter
from infra.contract.errors import InvalidArgumentError, LoraRetrieverError
from orchestrator.cli import output as console
from orchestrator.cli.commands.adapter_batch import Batch, register_batch
from orchestrator.cli.commands.adapter_files import export_adapters, import_adapters
from orchestrator.cli.options.adapters import AdapterChanges, AdapterOptions, CatalogueFilter, ExampleOptions
from orchestrator.cli.options.binding import Sets, with_options
from orchestrator.cli.options.targets import GenerationCheck, RetrievalTier, target
from orchestrator.clients.retrieval import RetrievalClient
from orchestrator.registration.adapter_folders import FoundAdapter, WithoutExamples, find_adapters

#: Longest wait for the catalogue during tab completion, where a user expects an answer at once.
_COMPLETION_TIMEOUT_S = 1.0

app = typer.Typer(no_args_is_help=True, help="Register, change, import, list, show, export and remove adapters.")

app.command("import")(import_adapters)
app.command("export")(export_adapters)


def complete_adapters(incomplete: str) -> list[str]:
    """Return the ids in the catalogue that start with `incomplete`; none if the service does not answer in time."""

    async def fetch() -> list[Adapter]:
        async with RetrievalClient(target("retrieval").channel) as retrieval:
            return await retrieval.list_adapters(timeout_s=_COMPLETION_TIMEOUT_S)

    with contextlib.suppress(LoraRetrieverError, OSError):
        return [adapter.adapter_id for adapter in asyncio.run(fetch()) if adapter.adapter_id.startswith(incomplete)]
    return []


@app.command("add")
@with_options
def add(
    *,
    name: Annotated[
        str,
        typer.Argument(help="The adapter's id, or a folder with one PEFT folder for each adapter."),
        Sets("adapter_id"),
    ],
    options: AdapterOptions,
    source: ExampleOptions,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace an adapter of the same id; takes effect at once.")
    ] = False,
    check: GenerationCheck,
    retrieval: RetrievalTier,
) -> None:
    """Register an adapter by training examples: the next request can retrieve it, without a restart.

    'adapters add FOLDER --examples DATA' registers every PEFT folder below FOLDER under the folder's name. The training
    data of each is DATA/NAME/train.jsonl, DATA/NAME.jsonl or DATA/NAME_train.jsonl. An adapter that cannot be
    registered is reported, the others are registered, and the exit status is then 1.
    """
    source.check()
    if options.checkpoint is None:
        found, batch = _batch(Path(name), options, source, replace)
        register_batch(found, batch, check, retrieval)
        return
    described = options.adapter(name, options.checkpoint)
    prompts, vectors = source.prompts(), source.embeddings()

    async def register(client: RetrievalClient) -> Adapter:
        async with check.checker() as checked:
            adapter = await checked(described)
        if replace:
            return await client.replace_adapter(adapter, prompts, vectors)
        if vectors:
            return await client.create_adapter_from_vectors(adapter, vectors)
        return await client.create_adapter(adapter, prompts)

    with console.progress().status(f"embedding {len(prompts)} examples" if prompts else "registering"):
        stored = retrieval.call(register)
    if retrieval.as_json:
        console.print_json(stored)
    else:
        console.results().print(
            f"registered {stored.adapter_id} for {stored.base_model}: revision {stored.revision}, "
            f"from {stored.example_count} examples",
            markup=False,
        )


def _batch(
    folder: Path, options: AdapterOptions, source: ExampleOptions, replace: bool
) -> tuple[list[FoundAdapter | WithoutExamples], Batch]:
    """Return the adapters in a folder and how to register them. Raises InvalidArgumentError."""
    if not folder.is_dir():
        raise InvalidArgumentError(
            "checkpoint",
            f"is missing; give the PEFT folder of adapter {str(folder)!r}, or a folder of adapters as NAME",
        )
    if source.examples is None:
        raise InvalidArgumentError("vectors", "holds the vectors of one adapter; give --examples for a folder of them")
    batch = Batch(
        describe=lambda item: options.adapter(item.name, item.checkpoint),
        prompts=lambda item: source.prompts_in(item.examples),
        replace=replace,
    )
    return find_adapters(folder, source.examples), batch


@app.command("update")
@with_options
def update(
    *,
    name: Annotated[
        str, typer.Argument(help="The adapter's id.", autocompletion=complete_adapters), Sets("adapter_id")
    ],
    changes: AdapterChanges,
    check: GenerationCheck,
    retrieval: RetrievalTier,
) -> None:
    """Change what the catalogue says of an adapter; only --examples embeds anything again."""
    changes.check()
    prompts = changes.prompts()

    async def apply(client: RetrievalClient) -> Adapter:
        changed, fields = changes.applied_to(await client.get_adapter(name))
        if changes.checkpoint is not None:
            async with check.checker() as checked:
                changed = await checked(changed)
        return await client.update_adapter(changed, fields, prompts)

    with console.progress().status(f"embedding {len(prompts)} examples" if prompts else "updating"):
        stored = retrieval.call(apply)
    if retrieval.as_json:
        console.print_json(stored)
    else:
        console.results().print(f"updated {stored.adapter_id}: revision {stored.revision}", markup=False)


@app.command("list")
@with_options
def list_adapters(*, catalogue: CatalogueFilter, retrieval: RetrievalTier) -> None:
    """List the adapters of the catalogue."""
    adapters = retrieval.call(catalogue.fetch)
    if retrieval.as_json:
        console.print_json(adapters)
        return
    table = Table("adapter", "kind", "base model", "rank", "examples", "revision", "registered")
    for adapter in adapters:
        when = f"{adapter.update_time:%Y-%m-%d %H:%M}" if adapter.update_time else ""
        rank, examples = str(adapter.rank or "?"), str(adapter.example_count)
        table.add_row(adapter.adapter_id, adapter.kind, adapter.base_model, rank, examples, adapter.revision, when)
    console.results().print(table)
    if not adapters and catalogue.is_set:
        console.note("no adapter matches --kind, --tag and --base-model; without them all are listed")
    elif not adapters:
        console.note("no adapters; register one with 'loraretriever adapters add'")


@app.command("show")
@with_options
def show(
    *,
    name: Annotated[str, typer.Argument(help="The adapter's id.", autocompletion=complete_adapters)],
    retrieval: RetrievalTier,
) -> None:
    """Show one adapter."""
    adapter = retrieval.call(lambda client: client.get_adapter(name))
    if retrieval.as_json:
        console.print_json(adapter)
        return
    table = Table(show_header=False, box=None)
    for label, value in (
        ("adapter", adapter.adapter_id),
        ("name", adapter.display_name),
        ("description", adapter.description),
        ("base model", adapter.base_model),
        ("kind", adapter.kind),
        ("tags", ", ".join(adapter.tags)),
        ("checkpoint", adapter.checkpoint_uri),
        ("rank", str(adapter.rank or "unknown")),
        ("adapted layers", ", ".join(adapter.targets) or "unknown"),
        ("revision", adapter.revision),
        ("examples", str(adapter.example_count)),
        ("registered", adapter.update_time.isoformat() if adapter.update_time else ""),
    ):
        table.add_row(label, value)
    console.results().print(table)


@app.command("remove")
@with_options
def remove(
    *,
    names: Annotated[list[str], typer.Argument(help="The adapters' ids.", autocompletion=complete_adapters)],
    retrieval: RetrievalTier,
) -> None:
    """Remove adapters from the catalogue; their checkpoints stay on disk."""

    async def delete(client: RetrievalClient) -> None:
        for name in names:
            await client.delete_adapter(name)

    retrieval.call(delete)
    if retrieval.as_json:
        console.print_json({"removed": names})
    else:
        console.results().print(f"removed {', '.join(names)}")
