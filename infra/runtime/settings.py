"""Settings of a tier: read once at start from flags, environment variables and defaults, then frozen.

A flag takes precedence over its environment variable, and the variable over the default.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_origin

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from infra.contract.errors import ConfigurationError
from infra.runtime.logs import LogFormat, LogLevel
from infra.runtime.security import check_configured_token
from infra.runtime.setting_groups import Setting, SettingsGroup, nested, settings_of, split_list


class ServerOptions(SettingsGroup):
    """Where and how a gRPC server listens."""

    address: str = Field(
        "127.0.0.1:0", description="host:port, [v6]:port or unix:/path to listen on; port 0 is a free one"
    )
    ready_file: Path | None = Field(
        None, description='file that holds {"address", "pid"} as JSON while the server is serving'
    )
    tls_certificate: Path | None = Field(None, description="PEM file of the server's certificate chain; turns TLS on")
    tls_key: Path | None = Field(None, description="PEM file of the server's private key")
    tls_client_ca: Path | None = Field(
        None, description="PEM file of the CA that clients' certificates must come from (mTLS)"
    )
    auth_token: SecretStr | None = Field(
        None, description="bearer token that every call must carry; better given by the environment"
    )
    max_message_bytes: int = Field(64 * 2**20, ge=4096, description="largest message in either direction, in bytes")
    max_concurrent_calls: int = Field(
        1024, ge=1, description="concurrent calls, beyond which new ones get RESOURCE_EXHAUSTED"
    )
    max_call_s: float | None = Field(
        None, gt=0, description="longest time a call may take, in seconds; unset is unlimited"
    )
    max_connection_age_s: float = Field(
        60, gt=0, description="seconds until a client is asked to reconnect, so that it sees new replicas"
    )
    max_connection_age_grace_s: float = Field(
        600, gt=0, description="seconds that calls of such a connection may continue"
    )
    shutdown_grace_s: float = Field(10, ge=0, description="seconds that running calls may continue after a stop signal")

    @property
    def token(self) -> str | None:
        """The bearer token in clear text; None when calls need none."""
        return None if self.auth_token is None else self.auth_token.get_secret_value()

    @model_validator(mode="after")
    def _check_tls_and_token(self) -> ServerOptions:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together; give both or neither")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_client_ca needs tls_certificate and tls_key")
        check_configured_token(self.token)
        return self


class TierSettings(BaseSettings):
    """Settings common to all tiers. A subclass adds its environment prefix, its default address and its own settings.

    Three kinds of fields have special rules:
    - the fields of a SettingsGroup are settings of the tier, with flat names;
    - `Field(validation_alias=AliasChoices("MAX_PIXELS"))` replaces the name of the environment variable;
    - a tuple[X, ...] is given as one comma-separated value.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    server: ServerOptions = ServerOptions()
    metrics_address: str = Field("", description="host:port of the Prometheus endpoint /metrics; empty is off")
    log_level: LogLevel = Field("info", description="lowest level of the logs that are written")
    log_format: LogFormat = Field("console", description="readable lines, or one JSON object per line")

    @model_validator(mode="before")
    @classmethod
    def _nest(cls, values: Any) -> Any:
        return nested(cls, values) if isinstance(values, dict) else values

    @field_validator("*", mode="before")
    @classmethod
    def _split_lists(cls, value: Any, info: ValidationInfo) -> Any:
        return split_list(cls.model_fields[info.field_name or ""], value)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read arguments and the environment, and no files."""
        return init_settings, _Environment(settings_cls)


class _Environment(PydanticBaseSettingsSource):
    """Reads the environment variables of all settings, including those of groups. An empty variable is unset."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return nothing for a field: __call__ reads all settings at once."""
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return the values that are set, by setting name."""
        variables = {name.upper(): value for name, value in os.environ.items() if value}
        values = {}
        for name, setting in settings_of(self.settings_cls).items():
            given = [
                variables[key.upper()] for key in _variables(self.settings_cls, setting) if key.upper() in variables
            ]
            if given:
                values[name] = given[0]
        return values


_S = TypeVar("_S", bound=TierSettings)


def load_settings(cls: type[_S], argv: Sequence[str] | None = None) -> _S:
    """Return the settings from `argv` (None: the arguments of the process), the environment and the defaults.

    `--help` prints every setting and exits.

    Raises:
        ConfigurationError: a value is invalid, a flag is unknown, or a variable with the tier's prefix is unknown. The
            message names the flag and the environment variable.
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
    """Return the environment variables of a setting, in order of precedence."""
    return _variables(cls, settings_of(cls)[name])


def service_name(cls: type[TierSettings]) -> str:
    """Return the name of a tier, from its environment prefix: "retrieval" for LORARETRIEVER_RETRIEVAL_."""
    return _prefix(cls).removeprefix("LORARETRIEVER_").rstrip("_").lower() or "loraretriever"


def as_arguments(settings: Mapping[str, object]) -> list[str]:
    """Return the flags for these settings: {"top_k": 3} becomes ["--top-k", "3"]. None is left out."""
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
        epilog="A flag overrides the environment variable in brackets.",
        allow_abbrev=False,
    )
    for name, setting in settings_of(cls).items():
        info, variables = setting.info, ", ".join(_variables(cls, setting))
        text = f"{info.description or name} (default: {_shown_default(setting.default)}) [{variables}]"
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


def _variables(cls: type[BaseSettings], setting: Setting) -> tuple[str, ...]:
    if setting.info.validation_alias is not None:
        return setting.aliases
    return (f"{_prefix(cls)}{setting.name.upper()}",)


def _prefix(cls: type[BaseSettings]) -> str:
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


def _shown_default(default: Any) -> str:
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, Enum):
        default = default.value
    if isinstance(default, tuple):
        default = ",".join(str(item) for item in default)
    return "unset" if default is None else "empty" if default == "" else str(default)


def _unknown_flag(cls: type[TierSettings], argument: str) -> str:
    flags = [_flag(name) for name in settings_of(cls)]
    if not argument.startswith("--"):
        return f"unexpected argument {argument!r}; every setting is a flag, see --help"
    name = argument.partition("=")[0]
    return f"unknown setting {name}; did you mean {_nearest(name, flags)}? See --help"


def _refuse_unknown_variables(cls: type[TierSettings], environment: Mapping[str, str]) -> None:
    prefix = _prefix(cls)
    known = {variable.upper() for setting in settings_of(cls).values() for variable in _variables(cls, setting)}
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
        setting = _setting_at(cls, tuple(map(str, problem["loc"])))
        if setting is None:
            yield text
            continue
        secret = "SecretStr" in str(setting.info.annotation)
        missing = problem["type"] == "missing"
        got = "" if secret or missing else f", got {str(problem['input'])[:80]!r}"
        yield f"{_flag(setting.name)} ({_variables(cls, setting)[0]}): {text}{got}"


def _setting_at(cls: type[TierSettings], location: tuple[str, ...]) -> Setting | None:
    """Return the setting at the location of a validation error; None for an error of a group or of all settings."""
    for setting in settings_of(cls).values():
        parents = (setting.group,) if setting.group else ()
        keys = {key.upper() for key in (setting.field, *setting.aliases)}
        field = location[len(parents)].upper() if len(location) > len(parents) else ""
        if location[: len(parents)] == parents and field in keys:
            return setting
    return None
