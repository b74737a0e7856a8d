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
from orchestrator.cli.commands.adapter_files import export_adapters, import_adapters
from orchestrator.cli.connect import reach
from orchestrator.cli.targets import AsJson, RetrievalTarget, target
from orchestrator.clients.retrieval import RetrievalClient
from orchestrator.evaluation.spec import PromptProtocol
from orchestrator.registration.peft_folder import read_adapter
from orchestrator.registration.training_examples import example_prompts, read_vectors

COMPLETION_TIMEOUT_S = 1.0

app = typer.Typer(no_args_is_help=True, help="Register, import, list, show, export and remove adapters.")

app.command("import")(import_adapters)
app.command("export")(export_adapters)


def known_names(incomplete: str) -> list[str]:
    """Return the ids in the catalogue that start so, for tab completion; none when it cannot be asked quickly."""

    async def fetch() -> list[Adapter]:
        async with RetrievalClient(target("retrieval").channel) as retrieval:
            return await retrieval.list_adapters(timeout_s=COMPLETION_TIMEOUT_S)

    with contextlib.suppress(LoraRetrieverError, OSError):
        return [each.adapter_id for each in asyncio.run(fetch()) if each.adapter_id.startswith(incomplete)]
    return []


Name = Annotated[str, typer.Argument(help="The adapter's id.")]
KnownName = Annotated[str, typer.Argument(help="The adapter's id.", autocompletion=known_names)]


@app.command("add")
def add(
    *,
    name: Name,
    checkpoint: Annotated[Path, typer.Option(help="PEFT folder, below the generation service's adapter roots.")],
    examples: Annotated[Path | None, typer.Option(help="Training data, JSONL; some of it is embedded.")] = None,
    vectors: Annotated[Path | None, typer.Option(help="Embeddings made before instead, .npy; a row each.")] = None,
    kind: Annotated[str, typer.Option("--kind", "--lora-type", help="What it specialises in: app, category, ...")] = "",
    tag: Annotated[list[str] | None, typer.Option(help="Label to filter by; may be repeated.")] = None,
    base_model: Annotated[str, typer.Option(help="Default: as its adapter_config.json says.")] = "",
    display_name: Annotated[str, typer.Option(help="Name for people.")] = "",
    description: Annotated[str, typer.Option(help="What it was trained to do.")] = "",
    count: Annotated[int, typer.Option(help="How many examples to embed.")] = 20,
    seed: Annotated[int, typer.Option(help="Chooses the examples.")] = 0,
    protocol: Annotated[PromptProtocol, typer.Option(help="How a row becomes examples.")] = PromptProtocol.STEP,
    replace: Annotated[
        bool, typer.Option("--replace", help="Take the place of an adapter of that name, at once.")
    ] = False,
    retrieval_target: RetrievalTarget = "",
    as_json: AsJson = False,
) -> None:
    """Register an adapter by training examples: the next request can retrieve it, with no restart."""
    if (examples is None) == (vectors is None):
        raise InvalidArgumentError("", "give either --examples train.jsonl or --vectors embeddings.npy")
    adapter = read_adapter(
        name,
        checkpoint,
        base_model=base_model,
        kind=kind,
        tags=tuple(tag or ()),
        display_name=display_name,
        description=description,
    )
    prompts = example_prompts(examples, count=count, seed=seed, protocol=protocol) if examples else []
    given = read_vectors(vectors) if vectors else []

    async def register() -> Adapter:
        async with reach(RetrievalClient, target("retrieval", retrieval_target)) as retrieval:
            if replace:
                return await retrieval.replace_adapter(adapter, prompts, given)
            if given:
                return await retrieval.create_adapter_from_vectors(adapter, given)
            return await retrieval.create_adapter(adapter, prompts)

    with console.progress().status(f"embedding {len(prompts)} examples" if prompts else "registering"):
        stored = asyncio.run(register())
    if as_json:
        console.print_json(stored)
    else:
        console.results().print(
            f"registered {stored.adapter_id} for {stored.base_model}: revision {stored.revision}, "
            f"from {stored.example_count} examples",
            markup=False,
        )


@app.command("list")
def list_adapters(
    *,
    kind: Annotated[str, typer.Option("--kind", "--lora-type", help="Only of this kind.")] = "",
    tag: Annotated[list[str] | None, typer.Option(help="Only with this tag; may be repeated.")] = None,
    base_model: Annotated[str, typer.Option(help="Only of this base model.")] = "",
    retrieval_target: RetrievalTarget = "",
    as_json: AsJson = False,
) -> None:
    """List the adapters of the catalogue."""

    async def fetch() -> list[Adapter]:
        async with reach(RetrievalClient, target("retrieval", retrieval_target)) as retrieval:
            return await retrieval.list_adapters(base_model, "" if kind == "all" else kind, tag or ())

    adapters = asyncio.run(fetch())
    if as_json:
        console.print_json(adapters)
        return
    table = Table("adapter", "kind", "base model", "rank", "examples", "revision", "registered")
    for adapter in adapters:
        when = f"{adapter.update_time:%Y-%m-%d %H:%M}" if adapter.update_time else ""
        rank, examples = str(adapter.rank or "?"), str(adapter.example_count)
        table.add_row(adapter.adapter_id, adapter.kind, adapter.base_model, rank, examples, adapter.revision, when)
    console.results().print(table)
    if not adapters:
        console.note("no adapters; register one with 'loraretriever adapters add'")


@app.command("show")
def show(*, name: KnownName, retrieval_target: RetrievalTarget = "", as_json: AsJson = False) -> None:
    """Show one adapter."""

    async def fetch() -> Adapter:
        async with reach(RetrievalClient, target("retrieval", retrieval_target)) as retrieval:
            return await retrieval.get_adapter(name)

    adapter = asyncio.run(fetch())
    if as_json:
        console.print_json(adapter)
        return
    table = Table(show_header=False, box=None)
    table.add_row("adapter", adapter.adapter_id)
    table.add_row("name", adapter.display_name)
    table.add_row("description", adapter.description)
    table.add_row("base model", adapter.base_model)
    table.add_row("kind", adapter.kind)
    table.add_row("tags", ", ".join(adapter.tags))
    table.add_row("checkpoint", adapter.checkpoint_uri)
    table.add_row("rank", str(adapter.rank or "not known"))
    table.add_row("adapted layers", ", ".join(adapter.targets) or "not known")
    table.add_row("revision", adapter.revision)
    table.add_row("examples", str(adapter.example_count))
    table.add_row("registered", adapter.update_time.isoformat() if adapter.update_time else "")
    console.results().print(table)


@app.command("remove")
def remove(
    *,
    names: Annotated[list[str], typer.Argument(help="The adapters' ids.", autocompletion=known_names)],
    retrieval_target: RetrievalTarget = "",
    as_json: AsJson = False,
) -> None:
    """Remove adapters from the catalogue; their checkpoints stay on disk."""

    async def delete() -> None:
        async with reach(RetrievalClient, target("retrieval", retrieval_target)) as retrieval:
            for name in names:
                await retrieval.delete_adapter(name)

    asyncio.run(delete())
    if as_json:
        console.print_json({"removed": names})
    else:
        console.results().print(f"removed {', '.join(names)}")
