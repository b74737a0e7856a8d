"""Where tests put a catalogue: a folder, local mode behind HTTP, and the server that QDRANT_URL names, if any."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retrieval_service.catalogue.qdrant import LocalFolder, Server
from tests.support.servers.qdrant_server import qdrant_server

QDRANT_URL = os.environ.get("QDRANT_URL", "")
QDRANT_API_KEY = os.environ.get("QDRANT_API_KEY") or None
PLACES = ("folder", "http", "server")
Place = LocalFolder | Server


@contextmanager
def place_of(kind: str, folder: Path) -> Iterator[Place]:
    """Give the place called so."""
    match kind:
        case "http":
            with qdrant_server() as url:
                yield Server(url)
        case "server":
            yield Server(QDRANT_URL, QDRANT_API_KEY)
        case _:
            yield LocalFolder(folder)
