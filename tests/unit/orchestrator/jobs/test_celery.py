"""Waking workers through Celery."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest
from kombu.exceptions import OperationalError

from orchestrator.jobs import celery
from orchestrator.jobs.celery import CeleryDispatcher, make_app


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Yield a port that accepts connections and never replies."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_broker_that_never_replies_is_an_error(silent_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(celery, "SOCKET_TIMEOUT_S", 0.2)
    monkeypatch.setattr(celery, "CONNECT_TIMEOUT_S", 0.2)
    dispatcher = CeleryDispatcher(make_app(f"redis://127.0.0.1:{silent_port}/0", visibility_timeout_s=60))
    start = time.monotonic()
    with pytest.raises(OperationalError):
        dispatcher.wake(1)
    assert time.monotonic() - start < 30
