"""The chat endpoint of a judge: rate limit, retries, and replies kept on disk."""

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
from typing import Any, ClassVar, Self

import httpx

from infra.contract.errors import ConfigurationError, FailedPreconditionError, InvalidArgumentError

LONGEST_PAUSE_S = 60.0
SHOWN_CHARACTERS = 300


REFUSES_THE_KEY = (401, 403)
REFUSES_EVERY_CALL = (402, 404, 405)
WORTH_ANOTHER_TRY = (408, 409, 425, 429)


class UnansweredError(Exception):
    """The endpoint gave no reply to one question: it refused it, or was full or away however often it was asked."""

    PREFIX: ClassVar[str] = "the judge gave no reply"


@dataclass(frozen=True)
class ChatEndpoint:
    """An OpenAI-compatible endpoint, such as http://localhost:8000/v1, and how hard it may be used.

    `requests_per_minute` None: as many as `concurrency` allows. `first_pause_s` is the pause before the second try; it
    doubles, and what the server says in Retry-After goes over it.
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
            raise InvalidArgumentError("judge", f"{self.base_url!r} is no address; say it as http://localhost:8000/v1")
        if not self.model:
            raise InvalidArgumentError("judge_model", "the judge's model is not named; say --judge-model")
        if self.requests_per_minute is not None and self.requests_per_minute <= 0:
            raise InvalidArgumentError("judge_rate", f"must be above 0, got {self.requests_per_minute}")
        if self.concurrency < 1 or self.attempts < 1:
            raise InvalidArgumentError("judge", "concurrency and attempts must be at least 1")

    def __repr__(self) -> str:
        return f"ChatEndpoint({self.base_url!r}, {self.model!r})"


@dataclass(frozen=True)
class ChatReply:
    """What the model said, and the tokens that were counted (0: the endpoint does not say)."""

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0


class ChatClient:
    """Asks a chat endpoint, one question a call, greedily."""

    def __init__(self, endpoint: ChatEndpoint) -> None:
        self._endpoint = endpoint
        self._pace = asyncio.Lock()
        self._next_start = 0.0
        headers = {"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
        self._http = httpx.AsyncClient(headers=headers, timeout=endpoint.timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def ask(self, text: str) -> ChatReply:
        """Return the model's reply; tried again where the endpoint is full, broken or away.

        Raises UnansweredError after the last try and for a question that is refused, ConfigurationError for a key that
        is, and FailedPreconditionError where every call will be.
        """
        pause_s = self._endpoint.first_pause_s
        for attempt in range(1, self._endpoint.attempts + 1):
            await self._wait_for_turn()
            asked_to_wait_s = 0.0
            try:
                response = await self._http.post(self._url, json=self._body(text))
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if response.is_success:
                    return _reply(response)
                problem = f"HTTP {response.status_code}: {response.text[:SHOWN_CHARACTERS]}"
                self._refuse(response.status_code, problem)
                asked_to_wait_s = _retry_after_s(response)
            if attempt < self._endpoint.attempts:
                await asyncio.sleep(min(LONGEST_PAUSE_S, max(asked_to_wait_s, random.uniform(pause_s / 2, pause_s))))
                pause_s *= 2
        raise _unanswered(f"in {self._endpoint.attempts} tries ({problem})")

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
        async with self._pace:
            await asyncio.sleep(max(0.0, self._next_start - time.monotonic()))
            self._next_start = time.monotonic() + 60 / self._endpoint.requests_per_minute

    def _refuse(self, status: int, problem: str) -> None:
        if status in REFUSES_THE_KEY:
            raise ConfigurationError(
                f"{self._url} refuses the key ({problem}); set LORARETRIEVER_CLIENT_JUDGE_KEY to one it takes"
            )
        if status in REFUSES_EVERY_CALL:
            raise FailedPreconditionError(f"{self._url} does not take the call ({problem}); is the model's name right?")
        if status < 500 and status not in WORTH_ANOTHER_TRY:
            raise _unanswered(f"({problem})")


class ReplyCache:
    """Replies on disk, one file each, named by the SHA-256 of endpoint, model and question."""

    def __init__(self, folder: Path, endpoint: ChatEndpoint) -> None:
        self._folder = folder
        self._endpoint = endpoint

    def find(self, text: str) -> ChatReply | None:
        """Return what was said to this before; None where nothing was, or a file is not whole."""
        try:
            return ChatReply(**json.loads(self._file(text).read_text(encoding="utf-8"))["reply"])
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def check(self) -> None:
        """Make the folder, before anything is asked and paid for. Raises InvalidArgumentError where it cannot be."""
        with _named_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)

    def keep(self, text: str, reply: ChatReply) -> None:
        """Store a reply, whole or not at all. Raises InvalidArgumentError where the folder takes none."""
        file = self._file(text)
        content = {"model": self._endpoint.model, "question": text, "reply": asdict(reply)}
        with _named_errors(self._folder):
            file.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=file.parent, suffix=".part")
            with os.fdopen(handle, "w", encoding="utf-8") as whole:
                json.dump(content, whole, ensure_ascii=False)
            Path(temporary).replace(file)

    def _file(self, text: str) -> Path:
        asked = (self._endpoint.base_url.rstrip("/"), self._endpoint.model, str(self._endpoint.max_tokens), text)
        name = hashlib.sha256("\0".join(asked).encode()).hexdigest()
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
        raise _unanswered(f"(no chat completion: {response.text[:SHOWN_CHARACTERS]!r})") from error


def _unanswered(problem: str) -> UnansweredError:
    return UnansweredError(f"{UnansweredError.PREFIX} {problem}")


def _retry_after_s(response: httpx.Response) -> float:
    try:
        return float(response.headers.get("Retry-After", 0))
    except ValueError:
        return 0.0
