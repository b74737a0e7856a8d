"""Opening Qdrant, and the mapping of its errors."""

from __future__ import annotations

import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from qdrant_client.http.exceptions import UnexpectedResponse

from infra.contract.errors import (
    ConfigurationError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    LoraRetrieverError,
    UnavailableError,
)
from retrieval_service.catalogue.catalogue import Catalogue
from retrieval_service.catalogue.qdrant import Qdrant, QdrantFolder, QdrantServer

DIM = 8


def test_folder_in_use_is_configuration_error(tmp_path: Path) -> None:
    with (
        closing(Qdrant(QdrantFolder(tmp_path))),
        pytest.raises(ConfigurationError, match=r"in use by another process.*--qdrant-path.*--qdrant-url"),
    ):
        Qdrant(QdrantFolder(tmp_path))


def test_folder_that_cannot_be_created_is_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be opened as a catalogue"):
        Qdrant(QdrantFolder(tmp_path / "file" / "below"))


def test_folder_with_broken_content_is_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text("{")
    with pytest.raises(ConfigurationError, match="cannot be opened as a catalogue"):
        Qdrant(QdrantFolder(tmp_path))


def test_missing_server_is_unavailable() -> None:
    with (
        closing(Qdrant(QdrantServer("http://127.0.0.1:9", timeout_s=1))) as qdrant,
        pytest.raises(UnavailableError, match=r"http://127.0.0.1:9 does not answer.*retry"),
    ):
        Catalogue(qdrant, "adapters", dim=DIM, fingerprint="embedder one")


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (401, FailedPreconditionError),
        (403, FailedPreconditionError),
        (404, FailedPreconditionError),
        (400, InternalError),
        (413, InvalidArgumentError),
        (429, UnavailableError),
        (500, UnavailableError),
        (503, UnavailableError),
    ],
)
def test_server_status_maps_to_error(status: int, expected: type[LoraRetrieverError]) -> None:
    qdrant = Qdrant(QdrantServer("https://127.0.0.1:9", api_key="secret"))
    with pytest.raises(expected) as caught, qdrant.session():
        raise UnexpectedResponse(status, "Reason", b"internals", httpx.Headers())
    assert "internals" not in str(caught.value)
    assert "secret" not in repr(qdrant.location)


@pytest.mark.parametrize(
    "url", ["http://me:hidden@127.0.0.1:9", "me:hidden@qdrant:6333", "https://hidden@127.0.0.1:9/path"]
)
def test_password_in_server_url_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(
        ConfigurationError, match=r"--qdrant-url contains a user or password.*--qdrant-api-key"
    ) as caught:
        Qdrant(QdrantServer(url))
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("retry_after", ["3", "Sun, 22 Nov 2026 10:00:00 GMT"])
def test_overloaded_server_is_unavailable(retry_after: str) -> None:
    class Busy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(429)
            self.send_header("Retry-After", retry_after)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Busy)
    thread = threading.Thread(target=server.handle_request, daemon=True)
    thread.start()
    with (
        server,
        closing(Qdrant(QdrantServer(f"http://127.0.0.1:{server.server_port}"))) as qdrant,
        pytest.raises(UnavailableError, match=r"429.*retry"),
        qdrant.session() as client,
    ):
        client.get_collections()
    thread.join()
