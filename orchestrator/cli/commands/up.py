"""`loraretriever up`: every tier on this machine until Ctrl-C."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from infra.contract.errors import ConfigurationError
from infra.runtime.addresses import check_free
from orchestrator.cli import output as console
from orchestrator.cli.options.binding import with_options
from orchestrator.cli.options.stack import AddressOptions, ModelOptions, TierSettings
from orchestrator.cli.options.targets import DEFAULTS, UP_DIR, AsJson, Tier, target
from orchestrator.cli.settings import CLIENT_PREFIX, environment
from orchestrator.devstack.demo_world import PHONE
from orchestrator.devstack.stack import Addresses, LocalStack, OnTier, StackPlan, TierState


@with_options
def up(
    *,
    models: ModelOptions,
    dataset_roots: Annotated[
        list[Path] | None,
        typer.Option(help="Folder below which datasets may be read; may be repeated (default: this one)."),
    ] = None,
    work_dir: Annotated[Path, typer.Option(help="Folder of the catalogue, logs and evaluations.")] = UP_DIR,
    addresses: AddressOptions,
    settings: TierSettings,
    as_json: AsJson = False,
) -> None:
    """Run all tiers and a worker on this machine, with an embedded Qdrant and Redis, until Ctrl-C.

    Without model folders the demo's tiny checkpoints are served. 'loraretriever serve TIER --help' lists the other
    settings of a tier; pass them as --retrieval-setting top-k=5, or as LORARETRIEVER_* variables. SIGINT, SIGTERM and
    SIGHUP stop everything; under nohup SIGHUP does not.
    """
    plan = _plan(models, dataset_roots or [Path()], work_dir.resolve(), addresses, settings)
    if models.are_demo and work_dir == UP_DIR and PHONE.work_dir.is_dir():
        console.note(f"the demo's adapters are in another catalogue: --work-dir {PHONE.work_dir} serves it")
    _check_ports(plan)
    with tiers_shown() as on_tier, LocalStack(plan, on_tier) as stack:
        if as_json:
            console.print_json(stack.addresses)
        else:
            print_addresses(stack.addresses, plan.work_dir)
            console.note(
                "running; register adapters with 'loraretriever adapters add', ask with 'loraretriever ask'. "
                "Ctrl-C stops."
            )
        stack.wait()


def _check_ports(plan: StackPlan) -> None:
    """Raise ConfigurationError for a port that is taken, before anything is started."""
    for name, address in (
        ("retrieval", plan.retrieval["address"]),
        ("generation", plan.generation["address"]),
        ("orchestrator", plan.orchestrator["address"]),
        ("gateway", plan.orchestrator["gateway_address"]),
    ):
        try:
            if address:
                check_free(str(address), f"{name}_address")
        except ConfigurationError as error:
            error.add_note("--free-ports chooses free ports for all tiers")
            raise


def _plan(
    models: ModelOptions, dataset_roots: list[Path], work_dir: Path, addresses: AddressOptions, settings: TierSettings
) -> StackPlan:
    model_settings = models.settings()
    roots = [str(root.resolve()) for root in dataset_roots]
    return StackPlan(
        work_dir=work_dir,
        environment=environment().for_tiers(own_settings=True) | models.variables,
        retrieval={"address": addresses.retrieval, **model_settings.retrieval, **settings.retrieval},
        generation={"address": addresses.generation, **model_settings.generation, **settings.generation},
        orchestrator={
            "address": addresses.orchestrator,
            "gateway_address": addresses.gateway,
            "dataset_roots": roots,
            **settings.orchestrator,
        },
    )


@contextmanager
def tiers_shown() -> Iterator[OnTier]:
    """Show on standard error how the tiers start and stop. Yields the callback for their states."""
    err = console.progress()
    with err.status("starting") as status:
        if not err.is_terminal:
            status.stop()

        def on_tier(name: str, state: TierState) -> None:
            match state:
                case "starting" | "stopping":
                    status.update(f"{state} {name}")
                    if err.is_terminal:
                        status.start()
                case "died":
                    err.print(f"{name} died and will be restarted; its log says why", style="dim")
                case "ready" | "stopped":
                    status.stop()
                    err.print(f"{name} {state}", style="dim")

        yield on_tier


def exports(addresses: Addresses) -> list[str]:
    """Return the shell lines that point commands to the tiers; none if commands find them by default."""
    by_tier = {"retrieval": addresses.retrieval, "orchestrator": addresses.orchestrator}
    tiers: tuple[Tier, ...] = ("retrieval", "orchestrator")
    if all(by_tier[tier] == DEFAULTS[tier] == target(tier).address for tier in tiers):
        return []
    return [f"export {CLIENT_PREFIX}{tier.upper()}_TARGET={by_tier[tier]}" for tier in tiers]


def print_addresses(addresses: Addresses, work_dir: Path) -> None:
    """Print where the tiers are, and how commands in other terminals find them."""
    out = console.results()
    out.print(f"retrieval     {addresses.retrieval}")
    out.print(f"generation    {addresses.generation}")
    out.print(f"orchestrator  {addresses.orchestrator}")
    if addresses.gateway:
        out.print(f"gateway       http://{addresses.gateway}/v1")
    out.print(f"logs          {work_dir / 'logs'}", soft_wrap=True)
    if lines := exports(addresses):
        out.print("for commands in other terminals, which would look elsewhere:")
        for line in lines:
            out.print(f"  {line}", soft_wrap=True)
