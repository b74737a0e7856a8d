"""`loraretriever up`: every tier on this machine until Ctrl-C."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from infra.contract.errors import ConfigurationError
from infra.runtime.addresses import check_free
from orchestrator.cli import output as console
from orchestrator.cli.settings import PREFIX, child_environment, told_by_environment
from orchestrator.cli.targets import DEFAULTS, UP_DIR, AsJson, Tier, target
from orchestrator.devstack.demo_world import MODEL_NAME, find_world
from orchestrator.devstack.process import Terminated, terminated_like_interrupted
from orchestrator.devstack.stack import Addresses, LocalStack, OnTier, StackPlan, TierState

Settings = Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="Any other setting of that tier.")]


def up(
    *,
    model_path: Annotated[Path | None, typer.Option(help="Folder of the base model (default: the demo's).")] = None,
    embedder_path: Annotated[Path | None, typer.Option(help="Folder of jina-v4 (default: the demo's).")] = None,
    adapter_roots: Annotated[
        list[Path] | None, typer.Option(help="Folder below which adapters may be loaded; may be repeated.")
    ] = None,
    dataset_roots: Annotated[
        list[Path] | None, typer.Option(help="Folder below which datasets may be read (default: this one).")
    ] = None,
    device: Annotated[str, typer.Option(help="Where models run: auto, cpu, cuda, cuda:1.")] = "auto",
    gpu_id: Annotated[str, typer.Option(help="The GPUs to use, such as 0 or 0,1 (CUDA_VISIBLE_DEVICES).")] = "",
    work_dir: Annotated[Path, typer.Option(help="Folder of the catalogue, logs and evaluations.")] = UP_DIR,
    retrieval_address: Annotated[str, typer.Option(help="host:port to listen on.")] = DEFAULTS["retrieval"],
    generation_address: Annotated[str, typer.Option(help="host:port to listen on.")] = DEFAULTS["generation"],
    orchestrator_address: Annotated[str, typer.Option(help="host:port to listen on.")] = DEFAULTS["orchestrator"],
    free_ports: Annotated[bool, typer.Option("--free-ports", help="Listen on free loopback ports instead.")] = False,
    retrieval_setting: Settings = None,
    generation_setting: Settings = None,
    orchestrator_setting: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Run all tiers and a worker on this machine, with an embedded Qdrant and Redis, until Ctrl-C.

    Without model folders the demo's tiny checkpoints are served. What else a tier can be told is listed by
    'loraretriever serve TIER --help' and passed on as --retrieval-setting top-k=5 (LORARETRIEVER_* variables work too).
    """
    free = "127.0.0.1:0"
    models = _models(model_path, embedder_path, adapter_roots or [])
    work_dir = work_dir.resolve()
    orchestrator: dict[str, object] = {
        "address": free if free_ports else orchestrator_address,
        "dataset_roots": [str(root.resolve()) for root in dataset_roots or [Path()]],
    }
    plan = StackPlan(
        work_dir=work_dir,
        environment=child_environment(own_settings=True) | ({"CUDA_VISIBLE_DEVICES": gpu_id} if gpu_id else {}),
        retrieval={
            "address": free if free_ports else retrieval_address,
            "device": device,
            **models.retrieval,
            **_settings(retrieval_setting, "retrieval"),
        },
        generation={
            "address": free if free_ports else generation_address,
            "device": device,
            **models.generation,
            **_settings(generation_setting, "generation"),
        },
        orchestrator={**orchestrator, **_settings(orchestrator_setting, "orchestrator")},
    )
    for tier in (plan.retrieval, plan.generation, plan.orchestrator):
        check_free(str(tier["address"]))
    with left_in_order(), tiers_shown() as on_tier, LocalStack(plan, on_tier) as stack:
        if as_json:
            console.print_json(stack.addresses)
        else:
            _print_addresses(stack.addresses, plan.work_dir)
        stack.wait()


@contextmanager
def left_in_order() -> Iterator[None]:
    """Leave the block on Ctrl-C, SIGTERM and SIGHUP alike, with the exit status that belongs to each."""
    try:
        with terminated_like_interrupted():
            yield
    except Terminated as signal:
        raise typer.Exit(128 + signal.signal_number) from None


@contextmanager
def tiers_shown() -> Iterator[OnTier]:
    """Yield what shows on standard error how the tiers start and stop."""
    shown = console.progress()
    with shown.status("starting") as status:
        if not shown.is_terminal:
            status.stop()

        def on_tier(name: str, state: TierState) -> None:
            match state:
                case "starting" | "stopping":
                    status.update(f"{state} {name}")
                    if shown.is_terminal:
                        status.start()
                case "died":
                    shown.print(f"{name} died, and is started again; its log says why", style="dim")
                case "ready" | "stopped":
                    status.stop()
                    shown.print(f"{name} {state}", style="dim")

        yield on_tier


@dataclass(frozen=True)
class _Models:
    """Model settings of both services."""

    retrieval: dict[str, object]
    generation: dict[str, object]


def _models(model: Path | None, embedder: Path | None, adapter_roots: list[Path]) -> _Models:
    """Return the model settings of both services: as given, else from the environment, else the demo's."""
    given_model = model is not None or told_by_environment("generation", "model_path")
    given_embedder = embedder is not None or told_by_environment("retrieval", "embedder_path")
    if given_model != given_embedder:
        missing = "--embedder-path" if given_model else "--model-path"
        raise ConfigurationError(f"{missing} is missing; give both model folders, or neither to serve the demo's")
    roots: list[str] = [str(root.resolve()) for root in adapter_roots]
    name: str | None = None
    if not given_model:
        world = find_world()
        console.note(f"no model folders given: serving the demo's tiny checkpoints in {world.folder / 'checkpoints'}")
        model, embedder, roots = world.base, world.embedder, [*roots, str(world.adapters)]
        name = MODEL_NAME
    for flag, folder in (("--model-path", model), ("--embedder-path", embedder)):
        if folder is not None and not folder.is_dir():
            raise ConfigurationError(f"{flag} {folder} is no folder; give the folder of the checkpoint")
    retrieval: dict[str, object] = {"embedder_path": embedder.resolve() if embedder else None}
    generation: dict[str, object] = {
        "model_path": model.resolve() if model else None,
        "model_name": name,
        "adapter_roots": roots or None,
    }
    return _Models(retrieval, generation)


def _settings(pairs: list[str] | None, tier: str) -> dict[str, object]:
    settings: dict[str, object] = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ConfigurationError(f"--{tier}-setting {pair!r} is no NAME=VALUE, such as log-level=debug")
        settings[name.replace("-", "_")] = value
    return settings


def exports(addresses: Addresses) -> list[str]:
    """Return the lines of a shell by which commands find tiers that are not at the addresses they look at first."""
    found = {"retrieval": addresses.retrieval, "orchestrator": addresses.orchestrator}
    tiers: tuple[Tier, ...] = ("retrieval", "orchestrator")
    if all(found[tier] == DEFAULTS[tier] == target(tier).address for tier in tiers):
        return []
    return [f"export {PREFIX}{tier.upper()}_TARGET={found[tier]}" for tier in tiers]


def _print_addresses(addresses: Addresses, work_dir: Path) -> None:
    out = console.results()
    out.print(f"retrieval     {addresses.retrieval}")
    out.print(f"generation    {addresses.generation}")
    out.print(f"orchestrator  {addresses.orchestrator}")
    out.print(f"logs          {work_dir / 'logs'}", soft_wrap=True)
    if lines := exports(addresses):
        out.print("for commands that would look elsewhere, in other terminals:")
        for line in lines:
            out.print(f"  {line}", soft_wrap=True)
    console.note(
        "running; register adapters with 'loraretriever adapters add', ask with 'loraretriever ask'. Ctrl-C stops."
    )
