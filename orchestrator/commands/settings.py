"""What the command line reads from the environment."""

from __future__ import annotations

import os
from functools import cache

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

OURS = ("LORARETRIEVER_RETRIEVAL_", "LORARETRIEVER_GENERATION_", "LORARETRIEVER_ORCHESTRATOR_")
LEGACY = ("MAX_PIXELS", "MAX_NUM")


class ClientSettings(BaseSettings):
    """Where the tiers are and how to speak to them, from LORARETRIEVER_CLIENT_<NAME>. Flags go over it."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_prefix="LORARETRIEVER_CLIENT_")

    retrieval_target: str = Field("", description="host:port of the retrieval service")
    generation_target: str = Field("", description="host:port of the generation service")
    orchestrator_target: str = Field("", description="host:port of the orchestrator")
    tls_ca: str = Field("", description="PEM file of the CA that the servers' certificates come from; turns TLS on")
    token: SecretStr | None = Field(None, description="bearer token of the servers")


@cache
def client_settings() -> ClientSettings:
    """Return the settings, read once."""
    return ClientSettings()


def child_environment(*, own_settings: bool) -> dict[str, str]:
    """Return the environment for tiers on this machine: one computing thread a process, unless said otherwise.

    Without `own_settings` whatever the caller has set for the tiers is left out.
    """
    environment = dict(os.environ)
    if not own_settings:
        environment = {
            name: value
            for name, value in environment.items()
            if not name.upper().startswith(OURS) and name.upper() not in LEGACY
        }
    environment.setdefault("OMP_NUM_THREADS", "1")
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    environment["PYTHONUNBUFFERED"] = "1"
    return environment


def told_by_environment(tier: str, name: str) -> bool:
    """Return whether the environment gives a tier's setting."""
    return bool(os.environ.get(f"LORARETRIEVER_{tier.upper()}_{name.upper()}"))
