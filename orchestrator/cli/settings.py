"""What the command line reads from the environment."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from infra.contract.errors import ConfigurationError

OURS = ("LORARETRIEVER_RETRIEVAL_", "LORARETRIEVER_GENERATION_", "LORARETRIEVER_ORCHESTRATOR_")
PREFIX = "LORARETRIEVER_CLIENT_"
LEGACY = ("MAX_PIXELS", "MAX_NUM")


class ClientSettings(BaseSettings):
    """Where the tiers are and how to speak to them, from LORARETRIEVER_CLIENT_<NAME>. Flags go over it."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix=PREFIX)

    retrieval_target: str = Field("", description="host:port of the retrieval service")
    orchestrator_target: str = Field("", description="host:port of the orchestrator")
    tls_ca: Path | None = Field(None, description="PEM file of the CA of the servers' certificates; turns TLS on")
    tls_certificate: Path | None = Field(None, description="PEM file of the client's own certificate (mTLS)")
    tls_key: Path | None = Field(None, description="PEM file of its private key")
    token: SecretStr | None = Field(None, description="bearer token of the servers")
    judge_key: SecretStr | None = Field(None, description="key of the endpoint that 'evaluate score --judge' asks")


@cache
def client_settings() -> ClientSettings:
    """Return the settings, read once. ConfigurationError for a variable with the prefix that is none of them."""
    for variable in os.environ:
        if variable.startswith(PREFIX) and variable.removeprefix(PREFIX).lower() not in ClientSettings.model_fields:
            known = ", ".join(f"{PREFIX}{name.upper()}" for name in ClientSettings.model_fields)
            raise ConfigurationError(f"{variable} in the environment is no setting; there are {known}")
    return ClientSettings()


def own_environment() -> dict[str, str]:
    """Return this process's environment."""
    return dict(os.environ)


def child_environment(*, own_settings: bool) -> dict[str, str]:
    """Return the environment for tiers on this machine: one computing thread a process, unless said otherwise.

    Without `own_settings` whatever the caller has set for the tiers is left out.
    """
    environment = own_environment()
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
