"""Qdrant as a folder of this process or as a server: opened, made safe for threads, its errors mapped, in one place."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdrant_client import QdrantClient
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from infra.contract.errors import (
    ConfigurationError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    UnavailableError,
)
from retrieval_service.catalogue.qdrant_http import transport


@dataclass(frozen=True)
class LocalFolder:
    """A folder that one process at a time may open. Never one that others can write: it holds pickles."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class Server:
    """A Qdrant server, such as "http://qdrant:6333"."""

    url: str
    api_key: str | None = None
    timeout_s: int = 10
    tls_ca: Path | None = None

    def __str__(self) -> str:
        return self.url

    def __repr__(self) -> str:
        return f"Server({self.url!r})"


class Qdrant:
    """A client that any thread may use: `with qdrant.session() as client`.

    A session of a local folder excludes all others; sessions of a server run side by side. What Qdrant raises within
    becomes UnavailableError, FailedPreconditionError, InternalError, or, for data too large, InvalidArgumentError.
    """

    def __init__(self, place: LocalFolder | Server) -> None:
        """Open the place. Raises ConfigurationError when a folder is in use or cannot be used."""
        self.place = place
        self.shared = isinstance(place, Server)
        self._lock: AbstractContextManager[Any] = nullcontext() if self.shared else threading.RLock()
        self._client = _connect(place)

    @contextmanager
    def session(self) -> Iterator[QdrantClient]:
        """Give the client, with errors mapped."""
        with self._lock:
            try:
                yield self._client
            except ResponseHandlingException as error:
                raise UnavailableError(
                    f"Qdrant at {self.place} does not answer ({error.source}); retry, and check that it runs"
                ) from error
            except UnexpectedResponse as error:
                raise self._refusal(error) from error
            except QdrantException as error:  # a 429 with Retry-After
                raise UnavailableError(f"Qdrant at {self.place} answers 429, it has too much to do; retry") from error
            except (sqlite3.Error, OSError) as error:
                raise UnavailableError(f"the catalogue in {self.place} cannot be read or written: {error}") from error

    def close(self) -> None:
        """Let go of the folder or the connections."""
        with self._lock:
            self._client.close()

    def _refusal(self, error: UnexpectedResponse) -> Exception:
        status = error.status_code or 0
        if status in (401, 403):
            return FailedPreconditionError(f"Qdrant at {self.place} refuses the key; check --qdrant-api-key")
        if status in (408, 429) or status >= 500:
            return UnavailableError(f"Qdrant at {self.place} answers {status} {error.reason_phrase}; retry")
        if status == 413:
            return InvalidArgumentError(
                "examples", f"are more than Qdrant at {self.place} takes at once; send fewer or smaller ones"
            )
        if status == 404:
            return FailedPreconditionError(
                f"the catalogue is gone from Qdrant at {self.place}; restore a backup with 'loraretriever retrieval "
                "restore', or restart this server to make a new one"
            )
        return InternalError(f"Qdrant at {self.place} answers {status} {error.reason_phrase}")


def _connect(place: LocalFolder | Server) -> QdrantClient:
    if isinstance(place, Server):
        if "@" in (place.url.partition("://")[2] or place.url).partition("/")[0]:
            raise ConfigurationError("--qdrant-url holds a user or password; give the key as --qdrant-api-key")
        try:
            return QdrantClient(
                url=place.url,
                api_key=place.api_key,
                timeout=place.timeout_s,
                check_compatibility=False,
                transport=transport(place.tls_ca),
            )
        except ValueError as error:
            raise ConfigurationError(f"--qdrant-url {place.url!r}: {error}") from error
    try:
        return QdrantClient(path=str(place.path), force_disable_check_same_thread=True)
    except RuntimeError as error:
        raise ConfigurationError(
            f"the catalogue in {place} is in use by another process; stop it, choose another --qdrant-path, "
            "or share a Qdrant server with --qdrant-url"
        ) from error
    except (sqlite3.Error, OSError, ValueError, KeyError) as error:
        raise ConfigurationError(f"--qdrant-path {place} cannot be opened as a catalogue: {error}") from error
