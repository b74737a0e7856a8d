"""Settings of a tier: flags over environment over defaults, read once at start, then frozen."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_origin

from pydantic import AliasChoices, Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from infra.contract.errors import ConfigurationError
from infra.runtime.logs import LogFormat, LogLevel


class TierSettings(BaseSettings):
    """What every tier can be told. A subclass gives the environment prefix, its own `address`, and its own fields.

    A field may be read under another environment name too: `Field(validation_alias=AliasChoices("MAX_PIXELS"))`.
    Fields of type tuple[X, ...] are given as one comma-separated value.
    """

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", enable_decoding=False, env_ignore_empty=True, populate_by_name=True
    )

    address: str = Field(
        "127.0.0.1:0", description="host:port, [v6]:port or unix:/path to listen on; port 0 is a free one"
    )
    metrics_address: str = Field("", description="host:port of the Prometheus endpoint /metrics; empty is off")
    ready_file: Path | None = Field(
        None, description='file that holds {"address", "pid"} as JSON while the server is serving'
    )
    log_level: LogLevel = Field("info", description="least severe logs that are written")
    log_format: LogFormat = Field("console", description="lines for people, or one JSON object a line")
    tls_certificate: Path | None = Field(None, description="PEM file of the server's certificate chain; turns TLS on")
    tls_key: Path | None = Field(None, description="PEM file of the server's private key")
    tls_client_ca: Path | None = Field(
        None, description="PEM file of the CA that clients' certificates must come from (mTLS)"
    )
    auth_token: SecretStr | None = Field(
        None, min_length=1, description="bearer token that every call must carry; better given by the environment"
    )
    max_message_bytes: int = Field(64 * 2**20, ge=4096, description="largest message in either direction, in bytes")
    max_concurrent_calls: int = Field(1024, ge=1, description="calls under way before new ones get RESOURCE_EXHAUSTED")
    max_call_s: float | None = Field(
        None, gt=0, description="longest time a call may take, in seconds; unset is unlimited"
    )
    max_connection_age_s: float = Field(
        60, gt=0, description="seconds until a client is asked to reconnect, so that it sees new replicas"
    )
    max_connection_age_grace_s: float = Field(
        600, gt=0, description="seconds that calls of such a connection may go on"
    )
    shutdown_grace_s: float = Field(10, ge=0, description="seconds that running calls may go on after a stop signal")

    @field_validator("*", mode="before")
    @classmethod
    def _split_lists(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, str) and get_origin(annotation) is tuple:
            return tuple(item.strip() for item in value.split(",") if item.strip())
        return value

    @model_validator(mode="after")
    def _tls_is_whole(self) -> TierSettings:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together; give both or neither")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_client_ca needs tls_certificate and tls_key")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read arguments and the environment, and nothing else."""
        return init_settings, env_settings


_S = TypeVar("_S", bound=TierSettings)


def load_settings(cls: type[_S], argv: Sequence[str] | None = None) -> _S:
    """Return the settings given by flags (`--model-path X`; default: the process's), environment and defaults.

    `--help` prints every setting and exits. Raises ConfigurationError, naming the flag and its environment variable,
    for a value that does not fit, and for a flag or a variable with the tier's prefix that is no setting.
    """
    parser = _parser(cls)
    given = [_dashed(argument) for argument in (sys.argv[1:] if argv is None else argv)]
    known, unknown = parser.parse_known_args(given)
    if unknown:
        raise ConfigurationError(_unknown_flag(cls, unknown[0]))
    _refuse_unknown_variables(cls, os.environ)
    flags = {name: value for name, value in vars(known).items() if value is not None}
    try:
        return cls(**flags)
    except ValidationError as error:
        raise ConfigurationError("; ".join(_problems(cls, error))) from None


def environment_names(cls: type[TierSettings], name: str) -> tuple[str, ...]:
    """Return the environment variables that a setting is read from, the first one first."""
    own = f"{_prefix(cls)}{name.upper()}"
    alias = cls.model_fields[name].validation_alias
    if alias is None:
        return (own,)
    choices = alias.choices if isinstance(alias, AliasChoices) else [alias]
    return tuple(choice for choice in choices if isinstance(choice, str) and choice != name)


def service_name(cls: type[TierSettings]) -> str:
    """Return what a tier is called, by its environment prefix: "retrieval" for LORARETRIEVER_RETRIEVAL_."""
    return _prefix(cls).removeprefix("LORARETRIEVER_").rstrip("_").lower() or "loraretriever"


def as_arguments(settings: Mapping[str, object]) -> list[str]:
    """Return flags that give a tier these settings: {"top_k": 3} becomes ["--top-k", "3"]. None is left out."""
    arguments: list[str] = []
    for name, value in settings.items():
        flag = _flag(name)
        match value:
            case None:
                continue
            case bool():
                arguments.append(flag if value else f"--no-{flag[2:]}")
            case tuple() | list():
                arguments += [flag, ",".join(str(item) for item in value)]
            case _:
                arguments += [flag, str(value)]
    return arguments


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"{message}; see --help")


def _parser(cls: type[TierSettings]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=service_name(cls),
        description=(cls.__doc__ or "").strip(),
        epilog="A flag goes over the environment variable in brackets.",
        allow_abbrev=False,
    )
    for name, info in cls.model_fields.items():
        text = (
            f"{info.description or name} (default: {_shown_default(info)}) [{', '.join(environment_names(cls, name))}]"
        )
        text = text.replace("%", "%%")
        if info.annotation is bool:
            parser.add_argument(_flag(name), dest=name, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            parser.add_argument(_flag(name), dest=name, default=None, metavar=_metavar(info), help=text)
    return parser


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _dashed(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def _prefix(cls: type[TierSettings]) -> str:
    return str(cls.model_config.get("env_prefix", "")).upper()


def _metavar(info: FieldInfo) -> str:
    types = [item for item in (get_args(info.annotation) or (info.annotation,)) if item is not type(None)]
    first = types[0]
    if isinstance(first, type):
        if issubclass(first, Enum):
            return "{" + ",".join(str(member.value) for member in first) + "}"
        many = "[,...]" if get_origin(info.annotation) is tuple else ""
        return {int: "N", float: "X", Path: "PATH", SecretStr: "SECRET"}.get(first, "TEXT") + many
    return "{" + ",".join(str(item) for item in types) + "}" if all(isinstance(t, str) for t in types) else "TEXT"


def _shown_default(info: FieldInfo) -> str:
    default = info.get_default(call_default_factory=True, validated_data={})
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, Enum):
        default = default.value
    if isinstance(default, tuple):
        default = ",".join(str(item) for item in default)
    return "unset" if default is None else "empty" if default == "" else str(default)


def _unknown_flag(cls: type[TierSettings], argument: str) -> str:
    flags = [_flag(name) for name in cls.model_fields]
    if not argument.startswith("--"):
        return f"unexpected argument {argument!r}; every setting is a flag, see --help"
    name = argument.partition("=")[0]
    return f"unknown setting {name}; did you mean {_nearest(name, flags)}? See --help"


def _refuse_unknown_variables(cls: type[TierSettings], environment: Mapping[str, str]) -> None:
    prefix = _prefix(cls)
    known = {variable.upper() for name in cls.model_fields for variable in environment_names(cls, name)}
    for variable in sorted(environment):
        if prefix and variable.upper().startswith(prefix) and variable.upper() not in known:
            nearest = _nearest(variable.upper(), sorted(known))
            raise ConfigurationError(f"unknown setting {variable} in the environment; did you mean {nearest}?")


def _nearest(word: str, known: Sequence[str]) -> str:
    return max(known, key=lambda candidate: difflib.SequenceMatcher(None, word, candidate).ratio())


def _problems(cls: type[TierSettings], error: ValidationError) -> Iterator[str]:
    for problem in error.errors(include_url=False, include_context=False):
        text = problem["msg"].removeprefix("Value error, ")
        text = text[0].lower() + text[1:]
        name = _field_of(cls, str(problem["loc"][0])) if problem["loc"] else ""
        if not name:
            yield text
            continue
        secret = "SecretStr" in str(cls.model_fields[name].annotation)
        missing = problem["type"] == "missing"
        got = "" if secret or missing else f", got {str(problem['input'])[:80]!r}"
        yield f"{_flag(name)} ({environment_names(cls, name)[0]}): {text}{got}"


def _field_of(cls: type[TierSettings], location: str) -> str:
    for name in cls.model_fields:
        if location == name or location.upper() in (variable.upper() for variable in environment_names(cls, name)):
            return name
    return ""
