"""Where tests store a catalogue: a folder, local mode behind HTTP, and the server that QDRANT_URL names, if set."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retrieval_service.catalogue.qdrant import QdrantFolder, QdrantServer
from tests.support.servers.fake_qdrant import fake_qdrant_url

QDRANT_URL = os.environ.get("QDRANT_URL", "")
QDRANT_API_KEY = os.environ.get("QDRANT_API_KEY") or None
LOCATIONS = ("folder", "http", "server")
Location = QdrantFolder | QdrantServer


@contextmanager
def qdrant_location(kind: str, folder: Path) -> Iterator[Location]:
    """Yield the location of that kind, one of LOCATIONS."""
    match kind:
        case "http":
            with fake_qdrant_url() as url:
                yield QdrantServer(url)
        case "server":
            yield QdrantServer(QDRANT_URL, QDRANT_API_KEY)
        case _:
            yield QdrantFolder(folder)
