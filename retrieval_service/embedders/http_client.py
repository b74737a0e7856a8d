"""JSON over HTTP to one endpoint, with retries that keep to the caller's time, and errors that never hold the key."""

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
from infra.runtime.logs import get_logger

log = get_logger(__name__)

MAX_ANSWER_BYTES = 256 * 2**20
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 8.0
_SHOWN = 200


@dataclass(frozen=True)
class Endpoint:
    """Where to ask, for which model, with which key, and how patiently: `retries` follow a first try."""

    url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    timeout_s: float = 30.0
    retries: int = 4

    @property
    def parsed(self) -> httpx.URL:
        """The address of the embeddings. Raises ConfigurationError when it is none."""
        try:
            url = httpx.URL(self.url)
        except (httpx.InvalidURL, ValueError) as error:
            raise ConfigurationError(f"--embedder-url {self.url!r} is no URL: {error}") from error
        if url.scheme not in ("http", "https") or not url.host:
            raise ConfigurationError(f"--embedder-url {self.url!r} is no URL such as http://127.0.0.1:8000/v1")
        if url.userinfo:
            raise ConfigurationError("--embedder-url holds a password; give it as --embedder-api-key")
        path = url.path.rstrip("/")
        return url.copy_with(path=path if path.endswith("/embeddings") else f"{path}/embeddings")

    @property
    def shown(self) -> str:
        """The address without what may be secret."""
        return str(self.parsed.copy_with(query=None, fragment=None))


class HttpClient:
    """Asks one endpoint. Safe for threads."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Raises ConfigurationError when the endpoint cannot be."""
        self.endpoint = endpoint
        self._url, self._shown = endpoint.parsed, endpoint.shown
        key = endpoint.api_key
        if key is not None and not (key.isascii() and key.isprintable()):
            raise ConfigurationError("--embedder-api-key holds characters that no HTTP header can carry")
        self._client = httpx.Client(headers={} if key is None else {"Authorization": f"Bearer {key}"})

    def post(self, body: Mapping[str, Any], left_s: Callable[[], float]) -> Any:
        """Return the JSON that answers `body`, in the seconds that `left_s` says, which may grow.

        429 and 5xx, and connections that fail, are tried again with growing pauses, or those that the endpoint asks
        for. Raises UnavailableError, OverloadedError, FailedPreconditionError, DeadlineError, InvalidArgumentError for
        an input that is refused, InternalError for what is no JSON.
        """
        content = json.dumps(body).encode()
        attempt = 0
        while True:
            try:
                return self._try(content, self._time_for_a_try(left_s()))
            except _AgainError as again:
                pause_s = again.pause_s if again.pause_s is not None else _pause_s(attempt)
                if attempt >= self.endpoint.retries or pause_s >= left_s():
                    raise again.error from again
                attempt += 1
                log.warning("asking the embeddings endpoint again", problem=again.error.message, seconds=pause_s)
                time.sleep(pause_s)

    def _time_for_a_try(self, left_s: float) -> float:
        if left_s <= 0:
            raise DeadlineError(f"the deadline passed before {self._shown} was asked; allow more time")
        return min(left_s, self.endpoint.timeout_s)

    def _try(self, content: bytes, timeout_s: float) -> Any:
        ends_at = time.monotonic() + timeout_s
        try:
            with self._client.stream(
                "POST", self._url, content=content, headers={"Content-Type": "application/json"}, timeout=timeout_s
            ) as response:
                answer = self._whole(response, ends_at)
                status, pause_s = response.status_code, _asked_pause_s(response)
        except httpx.TimeoutException as error:
            raise self._slow(timeout_s) from error
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise _AgainError(
                UnavailableError(
                    f"{self._shown} cannot be reached ({reason}); see that it runs and that the URL is right"
                )
            ) from error
        if status != httpx.codes.OK:
            raise self._refusal(status, answer, pause_s)
        try:
            return json.loads(answer)
        except ValueError as error:
            raise InternalError(
                f"{self._shown} does not answer JSON; check that --embedder-url is that of an embeddings endpoint"
            ) from error

    def _whole(self, response: httpx.Response, ends_at: float) -> bytes:
        """Return the answer's bytes: not more than the limit, and not drop by drop for ever."""
        answer = bytearray()
        for chunk in response.iter_bytes():
            answer += chunk
            if len(answer) > MAX_ANSWER_BYTES:
                raise InternalError(f"{self._shown} answers over {MAX_ANSWER_BYTES} bytes; check --embedder-url")
            if time.monotonic() > ends_at:
                raise self._slow(self.endpoint.timeout_s)
        return bytes(answer)

    def _slow(self, timeout_s: float) -> _AgainError:
        return _AgainError(
            UnavailableError(f"{self._shown} did not answer within {timeout_s:.3g} s; see --embedder-timeout-s")
        )

    def _refusal(self, status: int, answer: bytes, pause_s: float | None) -> Exception:
        said = self._said(answer)
        if status == httpx.codes.TOO_MANY_REQUESTS:
            return _AgainError(OverloadedError(f"{self._shown} is asked too much ({said}); retry later"), pause_s)
        if status >= httpx.codes.INTERNAL_SERVER_ERROR or status == httpx.codes.REQUEST_TIMEOUT:
            return _AgainError(UnavailableError(f"{self._shown} answers {status} ({said}); retry"), pause_s)
        if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            return FailedPreconditionError(f"{self._shown} refuses the key ({said}); check --embedder-api-key")
        if status in (httpx.codes.BAD_REQUEST, httpx.codes.REQUEST_ENTITY_TOO_LARGE, httpx.codes.UNPROCESSABLE_ENTITY):
            return InvalidArgumentError("", f"the embedder at {self._shown} refuses this with {status}: {said}")
        return FailedPreconditionError(
            f"{self._shown} answers {status} ({said}); check --embedder-url and --embedder-model"
        )

    def _said(self, answer: bytes) -> str:
        """Return what an error answer says, without the key, which some endpoints repeat."""
        text = answer[: 8 * _SHOWN].decode(errors="replace")
        try:
            content = json.loads(answer)
            error = content.get("error", content) if isinstance(content, dict) else content
            text = str(error.get("message") or error.get("detail") or error) if isinstance(error, dict) else str(error)
        except ValueError:
            pass
        if self.endpoint.api_key:
            text = text.replace(self.endpoint.api_key, "***")
        return " ".join(text.split())[:_SHOWN] or "it says no more"


class _AgainError(Exception):
    """A try that failed in a way that may pass; `error` is what it means when there is none after it."""

    def __init__(self, error: LoraRetrieverError, pause_s: float | None = None) -> None:
        super().__init__(error.message)
        self.error, self.pause_s = error, pause_s


def _pause_s(attempt: int) -> float:
    return float(min(_FIRST_PAUSE_S * 2**attempt, _LONGEST_PAUSE_S) * random.uniform(0.5, 1.0))


def _asked_pause_s(response: httpx.Response) -> float | None:
    """Return the seconds of a Retry-After header, at most a minute; None when it holds no number."""
    try:
        return min(max(float(response.headers.get("Retry-After", "")), 0.0), 60.0)
    except ValueError:
        return None
