"""The settings of the server that decide whether it serves a folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from generation_service.execution.devices import resolve_device, resolve_dtype
from generation_service.models.base import LoadOptions
from generation_service.settings import GenerationSettings

#: The server's own default, so that a report matches a server started without options.
BANK_RANKS = int(GenerationSettings.model_fields["bank_ranks"].default)


def load_options(chat_template: Path | None = None) -> LoadOptions:
    """Return how a server on this machine loads a base model."""
    return LoadOptions(dtype=resolve_dtype("auto", resolve_device("auto")), chat_template=chat_template)


@dataclass(frozen=True)
class ServerOptions:
    """How a server loads the base model, the ranks of its adapter bank, and its other names for the base model.

    The defaults are those of a server on this machine that is started without options.
    """

    load: LoadOptions = field(default_factory=load_options)
    bank_ranks: int = BANK_RANKS
    model_aliases: tuple[str, ...] = ()
