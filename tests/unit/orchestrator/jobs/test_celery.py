"""Waking workers: a broker that never answers holds up nobody for long."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest
from kombu.exceptions import OperationalError

from orchestrator.jobs import celery as celery_app
from orchestrator.jobs.celery import CeleryDispatcher, make_celery


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Yield a port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_broker_that_never_answers_is_an_error_in_the_end(silent_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(celery_app, "SOCKET_TIMEOUT_S", 0.2)
    monkeypatch.setattr(celery_app, "CONNECT_TIMEOUT_S", 0.2)
    dispatcher = CeleryDispatcher(make_celery(f"redis://127.0.0.1:{silent_port}/0", visibility_timeout_s=60))
    start = time.monotonic()
    with pytest.raises(OperationalError):
        dispatcher.wake(1)
    assert time.monotonic() - start < 30
