"""Assembling the generation service: what is checked before the weights are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from generation_service import app
from infra.contract.errors import ConfigurationError
from tests.support.harness.generation_stack import settings_for, write_model_fixture


def test_too_long_sequences_are_refused_before_the_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model_fixture(tmp_path).base
    monkeypatch.setattr(app, "load_base_model", lambda *_: pytest.fail("the weights were read"))
    settings = settings_for(folder, max_sequence_tokens=2**40)
    with (
        pytest.raises(ConfigurationError, match=f"max_sequence_tokens is {2**40}; this model supports at most"),
        app.generation_stack(settings),
    ):
        pass
