"""Settings: flags over environment over defaults; nothing unknown passes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import SettingsConfigDict

from infra.contract.errors import ConfigurationError
from infra.runtime.setting_groups import SettingName, SettingsGroup, settings_of
from infra.runtime.settings import (
    ServerOptions,
    TierSettings,
    as_arguments,
    environment_names,
    load_settings,
    service_name,
)

PREFIX = "LORARETRIEVER_SAMPLE_"


class StoreOptions(SettingsGroup):
    """A group made for a test."""

    prefix: ClassVar[str] = "store_"

    url: str = Field("", description="where the store is")
    kind: Annotated[str, SettingName("store")] = Field(
        "auto", description="which store it is", validation_alias=AliasChoices("STORE_KIND")
    )
    hosts: tuple[str, ...] = Field((), description="hosts of the store")


class SampleSettings(TierSettings):
    """A tier made for a test."""

    model_config = SettingsConfigDict(env_prefix=PREFIX)

    server: ServerOptions = ServerOptions(address="127.0.0.1:50999")
    store: StoreOptions = StoreOptions()
    top_k: int = Field(3, ge=1, description="adapters a prompt")
    roots: tuple[Path, ...] = Field((), description="folders that adapters may be in")
    eager: bool = Field(False, description="load at start")
    max_pixels: int | None = Field(
        None, ge=1, validation_alias=AliasChoices(f"{PREFIX}MAX_PIXELS", "MAX_PIXELS"), description="pixels an image"
    )


class RequiringSettings(TierSettings):
    """A tier that cannot do without."""

    model_config = SettingsConfigDict(env_prefix="LORARETRIEVER_REQUIRING_")

    model_path: Path = Field(description="folder of the model")


def refused(*argv: str, cls: type[TierSettings] = SampleSettings) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(cls, argv)
    return caught.value.message


def test_flags_override_environment_and_environment_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings(SampleSettings, []).top_k == 3
    monkeypatch.setenv(f"{PREFIX}TOP_K", "5")
    assert load_settings(SampleSettings, []).top_k == 5
    assert load_settings(SampleSettings, ["--top-k", "7"]).top_k == 7
    assert load_settings(SampleSettings, ["--top_k=8"]).top_k == 8, "the study's underscores work"


def test_every_kind_of_value_is_read_from_flags_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    by_flag = load_settings(SampleSettings, ["--roots", "a, b/c", "--eager", "--auth-token", "s3cret"])
    monkeypatch.setenv(f"{PREFIX}ROOTS", "a,b/c")
    monkeypatch.setenv(f"{PREFIX}EAGER", "true")
    monkeypatch.setenv(f"{PREFIX}AUTH_TOKEN", "s3cret")
    monkeypatch.setenv(f"{PREFIX}READY_FILE", "")
    by_environment = load_settings(SampleSettings, [])
    assert by_flag == by_environment
    assert by_flag.roots == (Path("a"), Path("b/c"))
    assert by_flag.eager
    assert by_flag.server.auth_token == SecretStr("s3cret")
    assert by_environment.server.ready_file is None, "an empty variable counts as unset"
    assert not load_settings(SampleSettings, ["--no-eager"]).eager


def test_legacy_variable_yields_to_flag_and_own_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_PIXELS", "602112")
    assert load_settings(SampleSettings, []).max_pixels == 602112
    monkeypatch.setenv(f"{PREFIX}MAX_PIXELS", "1000")
    assert load_settings(SampleSettings, []).max_pixels == 1000
    assert load_settings(SampleSettings, ["--max-pixels", "2000"]).max_pixels == 2000
    monkeypatch.delenv(f"{PREFIX}MAX_PIXELS")
    monkeypatch.setenv("MAX_PIXELS", "many")
    assert "--max-pixels" in refused()


def test_unknown_variable_with_prefix_is_refused_naming_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}TOPK", "5")
    assert refused() == f"unknown setting {PREFIX}TOPK in the environment; did you mean {PREFIX}TOP_K?"
    monkeypatch.delenv(f"{PREFIX}TOPK")
    monkeypatch.setenv("LORARETRIEVER_ANOTHER_TIER", "x")
    load_settings(SampleSettings, [])


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--top-l", "5"], "unknown setting --top-l; did you mean --top-k?"),
        (["stray"], "unexpected argument 'stray'"),
        (["--top-k"], "argument --top-k: expected one argument"),
        (["--top-k", "0"], f"--top-k ({PREFIX}TOP_K): input should be greater than or equal to 1, got '0'"),
        (["--log-level", "loud"], "--log-level"),
        (["--tls-key", "k.pem"], "tls_certificate and tls_key go together"),
        (["--tls-client-ca", "ca.pem"], "tls_client_ca needs tls_certificate and tls_key"),
    ],
)
def test_wrong_flag_is_named_with_remedy(argv: list[str], expected: str) -> None:
    assert expected in refused(*argv)


def test_all_wrong_settings_are_named_at_once() -> None:
    message = refused("--top-k", "x", "--shutdown-grace-s", "-1")
    assert "--top-k" in message
    assert "--shutdown-grace-s" in message


def test_missing_setting_is_named_with_flag_and_variable() -> None:
    message = refused(cls=RequiringSettings)
    assert message == "--model-path (LORARETRIEVER_REQUIRING_MODEL_PATH): field required"


def test_token_is_never_shown() -> None:
    assert "s3cret" not in repr(load_settings(SampleSettings, ["--auth-token", "s3cret"]))
    message = refused("--auth-token", "s3cret", "--top-k", "0")
    assert "s3cret" not in message


def test_settings_are_frozen_and_closed() -> None:
    settings: Any = load_settings(SampleSettings, [])
    with pytest.raises(ValueError, match="frozen"):
        settings.top_k = 4
    with pytest.raises(ValueError, match="Extra inputs"):
        SampleSettings(no_such=1)  # type: ignore[call-arg]


def test_no_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text(f"{PREFIX}TOP_K=9\n")
    monkeypatch.chdir(tmp_path)
    assert load_settings(SampleSettings, []).top_k == 3


@pytest.mark.parametrize("cls", [SampleSettings, RequiringSettings])
def test_help_lists_every_setting_with_description_default_and_variable(
    cls: type[TierSettings], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit) as caught:
        load_settings(cls, ["--help"])
    assert caught.value.code == 0
    blocks = [" ".join(block.split()) for block in capsys.readouterr().out.split("\n  --")[1:]]
    texts = {block.split()[0].rstrip(","): block for block in blocks}
    for name, setting in settings_of(cls).items():
        info = setting.info
        text = texts[name.replace("_", "-")]
        assert info.description
        assert info.description in text
        assert "default: " in text
        assert all(variable in text for variable in environment_names(cls, name))


def test_times_and_sizes_name_their_unit() -> None:
    for name, setting in settings_of(TierSettings).items():
        info = setting.info
        if info.annotation in (float, float | None):
            assert name.endswith("_s"), name
            assert "second" in (info.description or ""), name
    assert "in bytes" in (settings_of(TierSettings)["max_message_bytes"].info.description or "")


def test_as_arguments_round_trips() -> None:
    given = {"top_k": 7, "roots": (Path("a"), Path("b")), "eager": True, "ready_file": None, "auth_token": "t"}
    arguments = as_arguments(given)
    assert arguments == ["--top-k", "7", "--roots", "a,b", "--eager", "--auth-token", "t"]
    settings = load_settings(SampleSettings, arguments)
    assert (settings.top_k, settings.roots, settings.eager) == (7, (Path("a"), Path("b")), True)
    assert as_arguments({"eager": False}) == ["--no-eager"]


def test_group_is_flat_outside_and_nested_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}STORE_URL", "http://by-environment")
    monkeypatch.setenv("STORE_KIND", "remote")
    monkeypatch.setenv(f"{PREFIX}MAX_CALL_S", "")
    settings = load_settings(SampleSettings, ["--store-hosts", "a, b", "--max-call-s", "9"])
    assert settings.store == StoreOptions(url="http://by-environment", kind="remote", hosts=("a", "b"))
    assert (settings.server.max_call_s, settings.server.address) == (9, "127.0.0.1:50999")
    by_flag = load_settings(SampleSettings, ["--store-url", "http://by-flag", "--store", "local"])
    assert by_flag.store == StoreOptions(url="http://by-flag", kind="local")


def test_group_is_given_whole_or_by_its_flat_names() -> None:
    assert SampleSettings(store=StoreOptions(url="u")).store.url == "u"
    flat: dict[str, Any] = {"store_url": "u", "store": "local", "address": "h:1"}
    assert SampleSettings(**flat).store == StoreOptions(url="u", kind="local")
    assert SampleSettings(**flat).server.address == "h:1"
    both: dict[str, Any] = {"store": StoreOptions(url="u"), "store_hosts": ("a",)}
    assert SampleSettings(**both).store == StoreOptions(url="u", hosts=("a",))


def test_error_within_group_names_flag_and_variable() -> None:
    expected = f"--max-call-s ({PREFIX}MAX_CALL_S): input should be greater than 0, got '0'"
    assert refused("--max-call-s", "0") == expected
    assert refused("--auth-token", "two words").startswith("a bearer token is")


def test_two_settings_of_one_name_are_refused() -> None:
    class Twice(SampleSettings):
        address: str = Field("", description="the server has one")

    with pytest.raises(TypeError, match="two settings named 'address'"):
        settings_of(Twice)


def test_tier_is_named_after_prefix() -> None:
    assert service_name(SampleSettings) == "sample"
