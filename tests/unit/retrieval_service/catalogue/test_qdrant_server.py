"""Connections to a Qdrant server: deadlines, keys and TLS."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from infra.contract.errors import (
    ConfigurationError,
    FailedPreconditionError,
    UnavailableError,
)
from infra.runtime.deadline import bind_deadline
from retrieval_service.catalogue.qdrant import Qdrant, QdrantServer
from tests.support.harness.replica_catalogues import (
    adapter,
    open_catalogue,
    random_vectors,
    retrieved_ids,
)
from tests.support.servers.fake_qdrant import fake_qdrant


@contextmanager
def black_hole() -> Iterator[str]:
    """Yield the URL of a server that accepts connections and never responds."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield f"http://127.0.0.1:{silent.getsockname()[1]}"


def test_silent_qdrant_uses_at_most_half_of_deadline() -> None:
    with black_hole() as url, closing(Qdrant(QdrantServer(url, timeout_s=30))) as qdrant:
        bind_deadline(1.0)
        try:
            started = time.monotonic()
            with pytest.raises(UnavailableError, match="does not answer"), qdrant.session() as client:
                client.get_collections()
            assert time.monotonic() - started < 0.95
        finally:
            bind_deadline(None)


@pytest.mark.filterwarnings("ignore:Api key is used")
def test_key_is_sent_and_wrong_key_is_reported() -> None:
    with fake_qdrant(api_key="secret") as server:
        with open_catalogue(QdrantServer(server.url, "secret")) as catalogue:
            catalogue.create(adapter("one"), random_vectors(1))
            assert retrieved_ids(catalogue) == {"one"}
        for key in (None, "wrong"):
            with (
                pytest.raises(FailedPreconditionError, match="refuses the key; check --qdrant-api-key"),
                open_catalogue(QdrantServer(server.url, key)),
            ):
                pass


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a self-signed certificate of 127.0.0.1 and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command is not installed")
    folder = tmp_path_factory.mktemp("tls")
    files = folder / "server.pem", folder / "server.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-out", str(files[0]), "-keyout", str(files[1])),
        ],
        check=True,
        capture_output=True,
    )
    return files


def test_tls_server_is_trusted_only_with_its_ca(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with fake_qdrant(api_key="secret", tls=context) as server:
        assert server.url.startswith("https://")
        with open_catalogue(QdrantServer(server.url, "secret", tls_ca=certificate[0])) as catalogue:
            catalogue.create(adapter("one"), random_vectors(1))
            assert retrieved_ids(catalogue) == {"one"}
        with pytest.raises(UnavailableError, match="certificate"), open_catalogue(QdrantServer(server.url, "secret")):
            pass
    (tmp_path / "no.pem").write_text("no certificate")
    for file in (tmp_path / "no.pem", tmp_path / "nothing"):
        with pytest.raises(ConfigurationError, match="--qdrant-tls-ca"):
            Qdrant(QdrantServer("https://127.0.0.1:9", tls_ca=file))
