"""What the synchronous and the asynchronous client share: connection options, retries, errors."""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import httpx

from infra.contract import errors
from infra.contract.errors import (
    ConfigurationError,
    DeadlineError,
    InternalError,
    InvalidArgumentError,
    LoraRetrieverError,
    NotFoundError,
    OverloadedError,
    UnauthenticatedError,
    UnavailableError,
    UnreachableError,
)

DEFAULT_URL = "http://127.0.0.1:50080"
#: Pause before the first retry where the server names none; it doubles with each further one.
_FIRST_PAUSE_S = 0.5

_CLASS_OF_CODE: Mapping[str, type[LoraRetrieverError]] = {
    cls.reason.lower(): cls
    for cls in vars(errors).values()
    if isinstance(cls, type) and issubclass(cls, LoraRetrieverError) and cls is not LoraRetrieverError
}
_CLASS_OF_STATUS: Mapping[int, type[LoraRetrieverError]] = {
    401: UnauthenticatedError,
    404: NotFoundError,
    429: OverloadedError,
    503: UnavailableError,
    504: DeadlineError,
}


class ConnectionOptions(TypedDict, total=False):
    """The fields of Connection besides its URL."""

    token: str | None
    timeout_s: float
    max_retries: int
    ca: str | Path | None
    certificate: str | Path | None
    key: str | Path | None


@dataclass(frozen=True)
class Connection:
    """Where the gateway is, and how calls to it are made.

    `ca` is the PEM file of the CA of the server's certificate (None: the system's); `certificate` and `key` are the
    client's own (mTLS). A call that found a full queue, a starting service or no connection is repeated.
    """

    url: str = DEFAULT_URL
    token: str | None = field(default=None, repr=False)
    timeout_s: float = 300.0
    max_retries: int = 2
    ca: str | Path | None = None
    certificate: str | Path | None = None
    key: str | Path | None = None

    def options(self) -> dict[str, Any]:
        """Return the arguments of an httpx client. Raises ConfigurationError for unusable TLS files."""
        base = self.url.rstrip("/").removesuffix("/v1")
        if not base.startswith(("http://", "https://")):
            raise ConfigurationError(f"url {self.url!r} is not http://host:port or https://host:port")
        headers = {} if self.token is None else {"authorization": f"Bearer {self.token}"}
        timeout = httpx.Timeout(self.timeout_s, connect=min(self.timeout_s, 10))
        return {"base_url": base, "headers": headers, "timeout": timeout, "verify": self._tls()}

    def _tls(self) -> ssl.SSLContext | bool:
        if self.ca is None and self.certificate is None:
            return True
        try:
            context = ssl.create_default_context(cafile=None if self.ca is None else str(self.ca))
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"the TLS files of the client do not load: {error}") from error
        return context


def retry_pause_s(error: LoraRetrieverError, attempt: int, connection: Connection) -> float | None:
    """Return the seconds to wait before another attempt; None if the error is final."""
    if attempt >= connection.max_retries or not isinstance(error, OverloadedError | UnavailableError):
        return None
    return float(error.metadata.get("retry_after_s", _FIRST_PAUSE_S * 2**attempt))


def transport_error(error: httpx.HTTPError, connection: Connection) -> LoraRetrieverError:
    """Return the error of the contract for one of the connection."""
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        return DeadlineError(f"{connection.url} did not answer within {connection.timeout_s:g} s; raise timeout_s")
    return UnreachableError(
        f"{connection.url} cannot be reached ({error}); check that the orchestrator runs and the address is right",
        target=connection.url,
    )


def response_error(status: int, content: bytes, headers: Mapping[str, str]) -> LoraRetrieverError:
    """Return the error in a response that is not a success."""
    try:
        detail = json.loads(content)["error"]
    except (ValueError, KeyError, TypeError):
        detail = {"message": f"the server answered {status}: {content[:200].decode(errors='replace')}"}
    error = error_of(detail, _CLASS_OF_STATUS.get(status, InternalError))
    if headers.get("retry-after", "").isdigit():
        error.metadata["retry_after_s"] = headers["retry-after"]
    if request_id := headers.get("x-request-id"):
        error.add_note(f"request id {request_id}")
    return error


def error_of(detail: Mapping[str, Any], fallback: type[LoraRetrieverError] = InternalError) -> LoraRetrieverError:
    """Return the error that an `error` object describes."""
    message, field = str(detail.get("message")), detail.get("param") or ""
    cls = _CLASS_OF_CODE.get(str(detail.get("code")), fallback)
    if issubclass(cls, InvalidArgumentError):
        return InvalidArgumentError(field, message.removeprefix(f"{field}: "))
    return cls(message)
