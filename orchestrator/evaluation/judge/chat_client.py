"""A client of OpenAI-compatible chat endpoints with rate limit and retries, and a cache of replies on disk."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import httpx

from infra.contract.errors import ConfigurationError, FailedPreconditionError, InvalidArgumentError, UnavailableError

_MAX_PAUSE_S = 60.0
"""Longest pause between two attempts, also if Retry-After asks for more: a run must not appear to hang."""

_FIRST_CONTACT_ATTEMPTS = 4
"""Connection attempts, about 4 seconds, to an endpoint that has never answered: its address is probably wrong."""

_CONNECT_TIMEOUT_S = 5.0
"""Longest wait for a connection. A reply may take `timeout_s`, but a host that is up accepts connections at once."""

_SHOWN_CHARACTERS = 300
_KEY_REFUSED = (401, 403)
_EVERY_CALL_REFUSED = (402, 404, 405)
_RETRYABLE = (408, 409, 425, 429)


class UnansweredError(Exception):
    """The endpoint did not reply to one question: it refused the question, or failed in every attempt."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"the judge gave no reply {problem}")


@dataclass(frozen=True)
class ChatEndpoint:
    """An OpenAI-compatible endpoint and the limits on its use.

    Attributes:
        base_url: for example http://localhost:8000/v1.
        model: name of the model.
        key: API key; empty: none.
        requests_per_minute: rate limit; None: only `concurrency` limits requests.
        concurrency: maximum number of concurrent requests.
        attempts: maximum number of attempts per question.
        timeout_s: timeout of one attempt.
        first_pause_s: pause before the second attempt. Doubles with each attempt; a longer Retry-After takes
            precedence.
        max_tokens: maximum length of a reply.
    """

    base_url: str
    model: str
    key: str = ""
    requests_per_minute: float | None = None
    concurrency: int = 8
    attempts: int = 6
    timeout_s: float = 120.0
    first_pause_s: float = 0.5
    max_tokens: int = 512

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise InvalidArgumentError(
                "judge", f"{self.base_url!r} is not an HTTP address; give one such as http://localhost:8000/v1"
            )
        if not self.model:
            raise InvalidArgumentError("judge_model", "the judge's model is missing; give --judge-model")
        if self.requests_per_minute is not None and self.requests_per_minute <= 0:
            raise InvalidArgumentError("judge_rate", f"must be above 0, got {self.requests_per_minute}")
        if self.concurrency < 1 or self.attempts < 1:
            raise InvalidArgumentError("judge", "concurrency and attempts must be at least 1")

    def __repr__(self) -> str:
        return f"ChatEndpoint({self.base_url!r}, {self.model!r})"


@dataclass(frozen=True)
class ChatReply:
    """A model's reply and its token counts (0: the endpoint does not report them)."""

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0


class ChatClient:
    """Sends questions to a chat endpoint, one question a request, with greedy decoding."""

    def __init__(self, endpoint: ChatEndpoint) -> None:
        self._endpoint = endpoint
        # Guards: _next_start. Held while sleeping, so that waiting requests start in turn.
        self._rate_lock = asyncio.Lock()
        self._next_start = 0.0
        self._reached = False
        headers = {"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
        timeout = httpx.Timeout(endpoint.timeout_s, connect=min(_CONNECT_TIMEOUT_S, endpoint.timeout_s))
        self._http = httpx.AsyncClient(headers=headers, timeout=timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def ask(self, text: str) -> ChatReply:
        """Return the model's reply. Retries if the endpoint is overloaded, failing or unreachable.

        Raises:
            UnansweredError: the last attempt failed, or the endpoint refused the question.
            UnavailableError: no connection to the endpoint has ever been made.
            ConfigurationError: the endpoint refused the key.
            FailedPreconditionError: the endpoint will refuse every request.
        """
        pause_s = self._endpoint.first_pause_s
        for attempt in range(1, self._endpoint.attempts + 1):
            await self._wait_for_turn()
            retry_after_s = 0.0
            try:
                response = await self._http.post(self._url, json=self._body(text))
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
                self._check_first_contact(error, attempt)
            else:
                self._reached = True
                if response.is_success:
                    return _reply(response)
                problem = f"HTTP {response.status_code}: {response.text[:_SHOWN_CHARACTERS]}"
                self._raise_if_refused(response.status_code, problem)
                retry_after_s = _retry_after_s(response)
            if attempt < self._endpoint.attempts:
                await asyncio.sleep(min(_MAX_PAUSE_S, max(retry_after_s, random.uniform(pause_s / 2, pause_s))))
                pause_s *= 2
        raise UnansweredError(f"in {self._endpoint.attempts} attempts ({problem})")

    @property
    def _url(self) -> str:
        return f"{self._endpoint.base_url.rstrip('/')}/chat/completions"

    def _body(self, text: str) -> dict[str, Any]:
        return {
            "model": self._endpoint.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": 0,
            "max_tokens": self._endpoint.max_tokens,
        }

    async def _wait_for_turn(self) -> None:
        if self._endpoint.requests_per_minute is None:
            return
        async with self._rate_lock:
            await asyncio.sleep(max(0.0, self._next_start - time.monotonic()))
            self._next_start = time.monotonic() + 60 / self._endpoint.requests_per_minute

    def _check_first_contact(self, error: httpx.TransportError, attempt: int) -> None:
        """Give up on an endpoint that cannot be connected to and never was, instead of retrying every question."""
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            if not self._reached and attempt >= min(_FIRST_CONTACT_ATTEMPTS, self._endpoint.attempts):
                raise UnavailableError(
                    f"{self._endpoint.base_url} cannot be reached ({error}): start the judge, or correct --judge"
                ) from error
        else:
            self._reached = True

    def _raise_if_refused(self, status: int, problem: str) -> None:
        if status in _KEY_REFUSED:
            raise ConfigurationError(
                f"{self._url} refuses the key ({problem}); set LORARETRIEVER_CLIENT_JUDGE_KEY to a valid one"
            )
        if status in _EVERY_CALL_REFUSED:
            raise FailedPreconditionError(f"{self._url} refuses the request ({problem}); is the model's name right?")
        if status < 500 and status not in _RETRYABLE:
            raise UnansweredError(f"({problem})")


class ReplyCache:
    """Caches replies on disk, one file each, named by the SHA-256 of endpoint, model, max_tokens and question."""

    def __init__(self, folder: Path, endpoint: ChatEndpoint) -> None:
        self._folder = folder
        self._endpoint = endpoint

    def get(self, text: str) -> ChatReply | None:
        """Return the cached reply to a question; None: there is none, or its file is damaged."""
        try:
            return ChatReply(**json.loads(self._file(text).read_text(encoding="utf-8"))["reply"])
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def create(self) -> None:
        """Create the folder, before any request is paid for. Raises InvalidArgumentError if it cannot be created."""
        with _named_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)

    def put(self, text: str, reply: ChatReply) -> None:
        """Store a reply atomically. Raises InvalidArgumentError if the folder is not writable."""
        file = self._file(text)
        content = {"model": self._endpoint.model, "question": text, "reply": asdict(reply)}
        with _named_errors(self._folder):
            file.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=file.parent, suffix=".part")
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                json.dump(content, stream, ensure_ascii=False)
            Path(temporary).replace(file)

    def _file(self, text: str) -> Path:
        identity = (self._endpoint.base_url.rstrip("/"), self._endpoint.model, str(self._endpoint.max_tokens), text)
        name = hashlib.sha256("\0".join(identity).encode()).hexdigest()
        return self._folder / name[:2] / f"{name}.json"


@contextmanager
def _named_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InvalidArgumentError("judge_cache", f"{folder} cannot be written to: {error.strerror}") from error


def _reply(response: httpx.Response) -> ChatReply:
    try:
        body = response.json()
        usage = body.get("usage") or {}
        return ChatReply(
            str(body["choices"][0]["message"]["content"] or ""),
            int(usage.get("prompt_tokens") or 0),
            int(usage.get("completion_tokens") or 0),
        )
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UnansweredError(f"(not a chat completion: {response.text[:_SHOWN_CHARACTERS]!r})") from error


def _retry_after_s(response: httpx.Response) -> float:
    try:
        return float(response.headers.get("Retry-After", 0))
    except ValueError:
        return 0.0
