"""The environment of the command line."""

from __future__ import annotations

import pytest

from orchestrator.cli.main import run
from orchestrator.cli.settings import Environment, environment


def test_tiers_of_demo_do_not_see_settings_of_caller() -> None:
    variables = {"LORARETRIEVER_RETRIEVAL_QDRANT_URL": "http://production", "MAX_PIXELS": "1", "HOME": "/root"}
    read = Environment.of(variables)
    assert read.for_tiers(own_settings=False).keys() & variables.keys() == {"HOME"}
    assert read.for_tiers(own_settings=True).items() >= variables.items()
    assert read.sets("retrieval", "qdrant_url")
    assert not read.sets("generation", "qdrant_url")


def test_environment_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    before = environment()
    monkeypatch.setenv("LORARETRIEVER_CLIENT_TOKEN", "secret")
    assert environment() is before
    with pytest.raises(TypeError):
        before.variables["X"] = "1"  # type: ignore[index]


def test_unknown_variable_of_client_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LORARETRIEVER_CLIENT_TOKE", "secret")
    assert run(["adapters", "list"]) == 2
    errors = capsys.readouterr().err
    assert "LORARETRIEVER_CLIENT_TOKE in the environment is not a setting" in errors
    assert "secret" not in errors
