"""Which address each tier is asked at: flag, then environment, then a stack that runs here, then the default port."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from infra.runtime.channel import ChannelOptions
from orchestrator.cli.settings import client_settings
from orchestrator.devstack.stack import read_state

Tier = Literal["retrieval", "orchestrator"]
DEFAULTS: Mapping[str, str] = {
    "retrieval": "127.0.0.1:50051",
    "generation": "127.0.0.1:50052",
    "orchestrator": "127.0.0.1:50053",
}
UP_DIR = Path(".loraretriever/up")
DEMO_DIR = Path(".loraretriever/demo")
STACK_DIRS = (UP_DIR, DEMO_DIR)

RetrievalTarget = Annotated[
    str,
    typer.Option(
        "--retrieval-target",
        help=f"host:port of the retrieval service (default: the one that runs here, or {DEFAULTS['retrieval']}) "
        "[LORARETRIEVER_CLIENT_RETRIEVAL_TARGET]",
        show_default=False,
    ),
]
OrchestratorTarget = Annotated[
    str,
    typer.Option(
        "--orchestrator-target",
        help=f"host:port of the orchestrator (default: the one that runs here, or {DEFAULTS['orchestrator']}) "
        "[LORARETRIEVER_CLIENT_ORCHESTRATOR_TARGET]",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


@dataclass(frozen=True)
class Target:
    """A tier's address, and how to start that tier when it is not there."""

    tier: Tier
    channel: ChannelOptions

    @property
    def address(self) -> str:
        """host:port."""
        return self.channel.target

    @property
    def remedy(self) -> str:
        """A sentence for when nobody answers."""
        return (
            f"the {self.tier} tier does not answer at {self.address}; start it with 'loraretriever up' "
            f"(or 'loraretriever serve {self.tier}'), or name another address with --{self.tier}-target"
        )


def target(tier: Tier, flag: str = "") -> Target:
    """Return where to find a tier; `flag` is what the caller said, if anything."""
    settings = client_settings()
    stack = next((found for folder in STACK_DIRS if (found := read_state(folder)) is not None), None)
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
