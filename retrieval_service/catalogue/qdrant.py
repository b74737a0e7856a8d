"""Qdrant as a local folder or as a server: opened, made safe for threads, and with its errors mapped, in one place."""

from __future__ import annotations

import sqlite3
import ssl
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
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
from infra.runtime.deadline import remaining_s

_DEADLINE_SHARE = 0.5  # of the remaining time, which leaves the other half for reporting that Qdrant did not answer
_MIN_TIMEOUT_S = 0.05


@dataclass(frozen=True)
class QdrantFolder:
    """A folder, opened by one process at a time. Others must not be able to write to it: it contains pickles."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class QdrantServer:
    """A Qdrant server, for example "http://qdrant:6333"."""

    url: str
    api_key: str | None = None
    timeout_s: int = 10
    tls_ca: Path | None = None

    def __str__(self) -> str:
        return self.url

    def __repr__(self) -> str:
        return f"QdrantServer({self.url!r})"  # without the key


class Qdrant:
    """A Qdrant client for any thread: `with qdrant.session() as client`.

    Sessions of a folder exclude each other; sessions of a server run concurrently. Within a session, Qdrant's errors
    become UnavailableError, FailedPreconditionError, InternalError, or InvalidArgumentError for oversized data.
    """

    def __init__(self, location: QdrantFolder | QdrantServer) -> None:
        """Open the location. Raises ConfigurationError if a folder is in use or cannot be opened."""
        self.location = location
        self.shared = isinstance(location, QdrantServer)
        # Guards: the client of a folder. qdrant-client's local mode keeps its points in plain lists and dictionaries:
        # threads that mix upserts and queries fail or read half-written points. Reentrant, because sessions nest.
        self._lock: AbstractContextManager[Any] = nullcontext() if self.shared else threading.RLock()
        self._client = _connect(location)

    @contextmanager
    def session(self) -> Iterator[QdrantClient]:
        """Yield the client, with its errors mapped."""
        with self._lock:
            try:
                yield self._client
            except ResponseHandlingException as error:
                raise UnavailableError(
                    f"Qdrant at {self.location} does not answer ({error.source}); retry, and check that it is running"
                ) from error
            except UnexpectedResponse as error:
                raise self._error_of(error) from error
            except QdrantException as error:  # a 429 with Retry-After
                raise UnavailableError(f"Qdrant at {self.location} is overloaded (status 429); retry") from error
            except (sqlite3.Error, OSError) as error:
                raise UnavailableError(
                    f"the catalogue in {self.location} cannot be read or written: {error}"
                ) from error

    def close(self) -> None:
        """Release the folder or the connections."""
        with self._lock:
            self._client.close()

    def _error_of(self, response: UnexpectedResponse) -> Exception:
        status = response.status_code or 0
        if status in (401, 403):
            return FailedPreconditionError(f"Qdrant at {self.location} refuses the key; check --qdrant-api-key")
        if status in (408, 429) or status >= 500:
            return UnavailableError(
                f"Qdrant at {self.location} responded with {status} {response.reason_phrase}; retry"
            )
        if status == 413:
            return InvalidArgumentError(
                "examples", f"exceed what Qdrant at {self.location} accepts per request; send fewer or smaller ones"
            )
        if status == 404:
            return FailedPreconditionError(
                f"the catalogue no longer exists in Qdrant at {self.location}; restore a backup with 'loraretriever "
                "retrieval restore', or restart this server to create an empty one"
            )
        return InternalError(f"Qdrant at {self.location} responded with {status} {response.reason_phrase}")


class DeadlineTransport(httpx.HTTPTransport):
    """Limits each request to half of the time that remains until the deadline of the call being served.

    Called on: the thread that serves the call, because the deadline is a context variable.
    """

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request."""
        remaining = remaining_s()
        if remaining is not None:
            limit = max(_MIN_TIMEOUT_S, remaining * _DEADLINE_SHARE)
            timeouts = request.extensions.get("timeout", {})
            request.extensions["timeout"] = {
                step: limit if timeouts.get(step) is None else min(timeouts[step], limit)
                for step in ("connect", "read", "write", "pool")
            }
        return super().handle_request(request)


def _connect(location: QdrantFolder | QdrantServer) -> QdrantClient:
    if isinstance(location, QdrantServer):
        return _connect_to_server(location)
    try:
        # The lock of Qdrant replaces SQLite's check that only one thread uses the connection.
        return QdrantClient(path=str(location.path), force_disable_check_same_thread=True)
    except RuntimeError as error:
        raise ConfigurationError(
            f"the catalogue in {location} is in use by another process; stop it, choose another --qdrant-path, "
            "or share a Qdrant server with --qdrant-url"
        ) from error
    except (sqlite3.Error, OSError, ValueError, KeyError) as error:
        raise ConfigurationError(f"--qdrant-path {location} cannot be opened as a catalogue: {error}") from error


def _connect_to_server(server: QdrantServer) -> QdrantClient:
    if "@" in (server.url.partition("://")[2] or server.url).partition("/")[0]:
        raise ConfigurationError("--qdrant-url contains a user or password; pass the key as --qdrant-api-key")
    try:
        return QdrantClient(
            url=server.url,
            api_key=server.api_key,
            timeout=server.timeout_s,
            check_compatibility=False,  # else the constructor already sends a request
            transport=_transport(server.tls_ca),
        )
    except ValueError as error:
        raise ConfigurationError(f"--qdrant-url {server.url!r}: {error}") from error


def _transport(ca_file: Path | None) -> DeadlineTransport:
    """Return a transport that trusts the CA in `ca_file`, or the system's CAs. Raises ConfigurationError."""
    try:
        context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"--qdrant-tls-ca {ca_file} is not a PEM file of certificates: {error}") from error
    return DeadlineTransport(verify=context, retries=1)
