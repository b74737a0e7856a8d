"""The environment that commands read, which is fresh in every test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator.cli.settings import environment


@pytest.fixture(autouse=True)
def _fresh_environment() -> Iterator[None]:
    environment.cache_clear()
    yield
    environment.cache_clear()
