"""JSON over HTTP to one endpoint, with retries within the caller's deadline and errors that never contain the key."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from infra.contract.errors import (
    ConfigurationError,
    DeadlineError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    LoraRetrieverError,
    OverloadedError,
    UnavailableError,
)
from infra.runtime.deadline import has_passed
from infra.runtime.logs import get_logger

log = get_logger(__name__)

MAX_RESPONSE_BYTES = 256 * 2**20
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.25, 8.0
_MAX_RETRY_AFTER_S = 60.0
_MAX_SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class Endpoint:
    """An embeddings endpoint, the model to request, its key, and how often a failed request is retried."""

    url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    timeout_s: float = 30.0
    retries: int = 4

    @property
    def parsed(self) -> httpx.URL:
        """The address of the embeddings. Raises ConfigurationError if it is invalid."""
        try:
            url = httpx.URL(self.url)
        except (httpx.InvalidURL, ValueError) as error:
            raise ConfigurationError(f"--embedder-url {self.url!r} is not a URL: {error}") from error
        if url.scheme not in ("http", "https") or not url.host:
            raise ConfigurationError(f"--embedder-url {self.url!r} is not a URL such as http://127.0.0.1:8000/v1")
        if url.userinfo:
            raise ConfigurationError("--embedder-url contains a password; pass it as --embedder-api-key")
        path = url.path.rstrip("/")
        return url.copy_with(path=path if path.endswith("/embeddings") else f"{path}/embeddings")

    @property
    def shown(self) -> str:
        """The address without its query, which may be secret."""
        return str(self.parsed.copy_with(query=None, fragment=None))


class HttpClient:
    """Posts JSON to one endpoint. Safe for threads."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Check the endpoint. Raises ConfigurationError if its address or key is invalid."""
        self.endpoint = endpoint
        self._url, self._shown = endpoint.parsed, endpoint.shown
        key = endpoint.api_key
        if key is not None and not (key.isascii() and key.isprintable()):
            raise ConfigurationError("--embedder-api-key contains characters that an HTTP header cannot carry")
        self._client = httpx.Client(headers={} if key is None else {"Authorization": f"Bearer {key}"})

    def post(self, body: Mapping[str, Any], remaining_s: Callable[[], float]) -> Any:
        """Return the JSON response to `body` within `remaining_s()` seconds, which may grow during the call.

        Responses of 429 and 5xx and failed connections are retried, after the pause that the endpoint requests or with
        exponential backoff.

        Raises:
            UnavailableError: the endpoint does not respond or fails.
            OverloadedError: it responds with 429.
            FailedPreconditionError: it refuses the key, or responds with another 4xx.
            DeadlineError: the deadline passed first.
            InvalidArgumentError: it refuses an input.
            InternalError: the response is not JSON or is too large.
        """
        content = json.dumps(body).encode()
        attempt = 0
        while True:
            try:
                return self._attempt(content, self._attempt_timeout(remaining_s()))
            except _RetryableError as failure:
                if remaining_s() <= 0:
                    raise DeadlineError(
                        f"the deadline passed before {self._shown} responded; allow more time"
                    ) from failure
                pause_s = failure.pause_s if failure.pause_s is not None else _backoff_s(attempt)
                if attempt >= self.endpoint.retries or pause_s >= remaining_s():
                    raise failure.error from failure
                attempt += 1
                log.warning("retrying_embeddings_endpoint", problem=failure.error.message, seconds=pause_s)
                time.sleep(pause_s)

    def _attempt_timeout(self, remaining_s: float) -> float:
        if remaining_s <= 0:
            raise DeadlineError(f"the deadline passed before {self._shown} was called; allow more time")
        return min(remaining_s, self.endpoint.timeout_s)

    def _attempt(self, content: bytes, timeout_s: float) -> Any:
        ends_at = time.monotonic() + timeout_s
        try:
            with self._client.stream(
                "POST", self._url, content=content, headers={"Content-Type": "application/json"}, timeout=timeout_s
            ) as response:
                received = self._read(response, ends_at)
                status, pause_s = response.status_code, _retry_after_s(response)
        except httpx.TimeoutException as error:
            raise self._timed_out(timeout_s) from error
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise _RetryableError(
                UnavailableError(
                    f"{self._shown} cannot be reached ({reason}); check that it is running and that the URL is right"
                )
            ) from error
        if status != httpx.codes.OK:
            raise self._error_of(status, received, pause_s)
        try:
            return json.loads(received)
        except ValueError as error:
            raise InternalError(
                f"{self._shown} does not respond with JSON; check that --embedder-url is an embeddings endpoint"
            ) from error

    def _read(self, response: httpx.Response, ends_at: float) -> bytes:
        """Return the response's body. httpx limits the time between chunks; this limits the total time and size."""
        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > MAX_RESPONSE_BYTES:
                raise InternalError(
                    f"{self._shown} responded with over {MAX_RESPONSE_BYTES} bytes; check --embedder-url"
                )
            if has_passed(ends_at):
                raise self._timed_out(self.endpoint.timeout_s)
        return bytes(body)

    def _timed_out(self, timeout_s: float) -> _RetryableError:
        return _RetryableError(
            UnavailableError(f"{self._shown} did not respond within {timeout_s:.3g} s; see --embedder-timeout-s")
        )

    def _error_of(self, status: int, body: bytes, pause_s: float | None) -> Exception:
        reason = self._reason(body)
        if status == httpx.codes.TOO_MANY_REQUESTS:
            return _RetryableError(OverloadedError(f"{self._shown} is overloaded ({reason}); retry later"), pause_s)
        if status >= httpx.codes.INTERNAL_SERVER_ERROR or status == httpx.codes.REQUEST_TIMEOUT:
            return _RetryableError(
                UnavailableError(f"{self._shown} responded with {status} ({reason}); retry"), pause_s
            )
        if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            return FailedPreconditionError(f"{self._shown} refuses the key ({reason}); check --embedder-api-key")
        if status in (httpx.codes.BAD_REQUEST, httpx.codes.REQUEST_ENTITY_TOO_LARGE, httpx.codes.UNPROCESSABLE_ENTITY):
            return InvalidArgumentError("", f"the embedder at {self._shown} refuses this with {status}: {reason}")
        return FailedPreconditionError(
            f"{self._shown} responded with {status} ({reason}); check --embedder-url and --embedder-model"
        )

    def _reason(self, body: bytes) -> str:
        """Return the message of an error response without the key, which some endpoints repeat."""
        text = body[: 8 * _MAX_SHOWN_CHARACTERS].decode(errors="replace")
        try:
            content = json.loads(body)
            error = content.get("error", content) if isinstance(content, dict) else content
            text = str(error.get("message") or error.get("detail") or error) if isinstance(error, dict) else str(error)
        except ValueError:
            pass
        if self.endpoint.api_key:
            text = text.replace(self.endpoint.api_key, "***")
        return " ".join(text.split())[:_MAX_SHOWN_CHARACTERS] or "no further message"


class _RetryableError(Exception):
    """A failure that may pass. `error` is what the caller gets if no retry follows."""

    def __init__(self, error: LoraRetrieverError, pause_s: float | None = None) -> None:
        super().__init__(error.message)
        self.error, self.pause_s = error, pause_s


def _backoff_s(attempt: int) -> float:
    # Random, so that callers that failed together do not retry together.
    return float(min(_FIRST_PAUSE_S * 2**attempt, _MAX_PAUSE_S) * random.uniform(0.5, 1.0))


def _retry_after_s(response: httpx.Response) -> float | None:
    """Return the seconds of a Retry-After header, at most a minute; None if it holds no number."""
    try:
        return min(max(float(response.headers.get("Retry-After", "")), 0.0), _MAX_RETRY_AFTER_S)
    except ValueError:
        return None
