"""The environment of the command line, read once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from infra.contract.errors import ConfigurationError

CLIENT_PREFIX = "LORARETRIEVER_CLIENT_"
_TIER_PREFIXES = ("LORARETRIEVER_RETRIEVAL_", "LORARETRIEVER_GENERATION_", "LORARETRIEVER_ORCHESTRATOR_")
#: Variables of the study's scripts that the tiers read too.
_LEGACY_NAMES = ("MAX_PIXELS", "MAX_NUM")


class ClientSettings(BaseModel):
    """Where the tiers are and how to call them, from LORARETRIEVER_CLIENT_<NAME>. Flags override it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    retrieval_target: str = Field("", description="host:port of the retrieval service")
    generation_target: str = Field("", description="host:port of the generation service")
    orchestrator_target: str = Field("", description="host:port of the orchestrator")
    tls_ca: Path | None = Field(None, description="PEM file of the CA of the servers' certificates; turns TLS on")
    tls_certificate: Path | None = Field(None, description="PEM file of the client's own certificate (mTLS)")
    tls_key: Path | None = Field(None, description="PEM file of its private key")
    token: SecretStr | None = Field(None, description="bearer token of the servers")
    judge_key: SecretStr | None = Field(None, description="key of the endpoint of 'evaluate score --judge'")


@dataclass(frozen=True)
class Environment:
    """The variables that this process started with, and the client's settings among them."""

    variables: Mapping[str, str]
    client: ClientSettings

    @classmethod
    def of(cls, variables: Mapping[str, str]) -> Environment:
        """Return the environment of `variables`.

        Raises ConfigurationError for a variable with the client's prefix that is not a setting.
        """
        values = {}
        for variable, value in variables.items():
            if not variable.startswith(CLIENT_PREFIX):
                continue
            name = variable.removeprefix(CLIENT_PREFIX).lower()
            if name not in ClientSettings.model_fields:
                known = ", ".join(f"{CLIENT_PREFIX}{field.upper()}" for field in ClientSettings.model_fields)
                raise ConfigurationError(f"{variable} in the environment is not a setting; the settings are {known}")
            values[name] = value
        return cls(MappingProxyType(dict(variables)), ClientSettings.model_validate(values))

    def sets(self, tier: str, name: str) -> bool:
        """Return whether a setting of a tier is given by a variable."""
        return bool(self.variables.get(f"LORARETRIEVER_{tier.upper()}_{name.upper()}"))

    def for_tiers(self, *, own_settings: bool) -> dict[str, str]:
        """Return the environment of tiers on this machine.

        Without `own_settings` the caller's settings of the tiers are removed.
        """
        variables = dict(self.variables)
        if not own_settings:
            variables = {
                name: value
                for name, value in variables.items()
                if not name.upper().startswith(_TIER_PREFIXES) and name.upper() not in _LEGACY_NAMES
            }
        variables.setdefault("TOKENIZERS_PARALLELISM", "false")
        variables["PYTHONUNBUFFERED"] = "1"
        return variables


@cache
def environment() -> Environment:
    """Return the environment of this process as it was at the first call. Raises ConfigurationError."""
    return Environment.of(os.environ)
