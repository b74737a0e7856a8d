"""Client: the gateway from synchronous programs."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from os import PathLike
from types import TracebackType
from typing import Any, Self, Unpack

import httpx

from infra.contract.adapter import Adapter
from infra.contract.errors import LoraRetrieverError
from infra.contract.prompt import Prompt
from orchestrator.clients.http.encoding import (
    CONTENT_TYPE,
    AnswerOptions,
    Call,
    ImageSource,
    RetrievalOptions,
    adapter_call,
    add_call,
    answer_call,
    list_call,
    match_call,
)
from orchestrator.clients.http.replies import Matches, Reply, adapter_from, matches_from, reply_from
from orchestrator.clients.http.stream import StreamState
from orchestrator.clients.http.transport import (
    DEFAULT_URL,
    Connection,
    ConnectionOptions,
    response_error,
    retry_pause_s,
    transport_error,
)


class Client:
    """Answers prompts, matches adapters and manages the catalogue, over HTTP.

    with Client() as client:
        reply = client.answer("Order the running shoes.", images=["screen.png"])

    The arguments are those of Connection. Errors are those of `loraretriever.LoraRetrieverError`'s tree.
    """

    def __init__(self, url: str = DEFAULT_URL, **options: Unpack[ConnectionOptions]) -> None:
        self._connection = Connection(url, **options)
        self._http = httpx.Client(**self._connection.options())
        self.adapters = Adapters(self._json)

    def answer(
        self, prompt: str | Prompt, images: Sequence[ImageSource] = (), **options: Unpack[AnswerOptions]
    ) -> Reply:
        """Return the answer to a prompt."""
        call = answer_call(prompt, images, options)
        return reply_from(self._json(call), call.images)

    def stream(
        self, prompt: str | Prompt, images: Sequence[ImageSource] = (), **options: Unpack[AnswerOptions]
    ) -> ReplyStream:
        """Return the answer as an iterable of its text, piece by piece."""
        call = answer_call(prompt, images, options, stream=True)
        return ReplyStream(StreamState(call.images), self._lines(call))

    def match(
        self, prompt: str | Prompt, images: Sequence[ImageSource] = (), **options: Unpack[RetrievalOptions]
    ) -> Matches:
        """Return the adapters that fit a prompt, without an answer."""
        call = match_call(prompt, images, options)
        found = self._json(call)
        return matches_from(found["data"], found, call.images)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _json(self, call: Call) -> Any:
        with self._sent(call) as response:
            response.read()
            return response.json()

    def _lines(self, call: Call) -> Generator[str, None, None]:
        with self._sent(call) as response:
            yield from response.iter_lines()

    @contextmanager
    def _sent(self, call: Call) -> Iterator[httpx.Response]:
        """Yield the response of a call that succeeded, after retries."""
        response = self._send(call)
        try:
            yield response
        except httpx.HTTPError as error:
            raise transport_error(error, self._connection) from error
        finally:
            response.close()

    def _send(self, call: Call) -> httpx.Response:
        attempt = 0
        while True:
            try:
                return self._attempt(call)
            except LoraRetrieverError as error:
                pause_s = retry_pause_s(error, attempt, self._connection)
                if pause_s is None:
                    raise
            time.sleep(pause_s)
            attempt += 1

    def _attempt(self, call: Call) -> httpx.Response:
        try:
            request = self._http.build_request(
                call.method, call.path, content=call.content, headers=CONTENT_TYPE, params=call.query
            )
            response = self._http.send(request, stream=True)
            if response.is_success:
                return response
            content = response.read()
            response.close()
        except httpx.HTTPError as error:
            raise transport_error(error, self._connection) from error
        raise response_error(response.status_code, content, response.headers)


class ReplyStream:
    """A streamed answer: iterate over its text; `matches` is known from the first piece on, `reply` at the end."""

    def __init__(self, state: StreamState, lines: Generator[str, None, None]) -> None:
        self._state = state
        self._lines = lines
        self._pieces = self._read()

    @property
    def matches(self) -> Matches | None:
        """The retrieved adapters; None before the first piece."""
        return self._state.matches

    @property
    def reply(self) -> Reply:
        """The whole answer. Raises InternalError before the end of the stream."""
        return self._state.result()

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def close(self) -> None:
        """End the stream early, which cancels the generation."""
        self._pieces.close()

    def _read(self) -> Generator[str, None, None]:
        with closing(self._lines):
            for line in self._lines:
                if piece := self._state.feed(line):
                    yield piece


class Adapters:
    """The catalogue."""

    def __init__(self, send: Callable[[Call], Any]) -> None:
        self._send = send

    def list(self, base_model: str = "", kind: str = "", tags: Sequence[str] = ()) -> tuple[Adapter, ...]:
        """Return the adapters of the catalogue, ordered by id."""
        return tuple(adapter_from(item) for item in self._send(list_call(base_model, kind, tags))["data"])

    def get(self, adapter_id: str) -> Adapter:
        """Return one adapter. Raises NotFoundError."""
        return adapter_from(self._send(adapter_call("GET", adapter_id)))

    def add(
        self,
        adapter_id: str,
        checkpoint: str | PathLike[str],
        examples: Sequence[str | Prompt],
        *,
        kind: str = "",
        tags: Sequence[str] = (),
        display_name: str = "",
        description: str = "",
        replace: bool = False,
    ) -> Adapter:
        """Register an adapter by training examples. Raises AlreadyExistsError, or why it cannot be served."""
        described = {"kind": kind, "tags": list(tags), "display_name": display_name, "description": description}
        return adapter_from(self._send(add_call(adapter_id, checkpoint, examples, **described, replace=replace)))

    def delete(self, adapter_id: str) -> None:
        """Remove an adapter from the catalogue; its files stay. Raises NotFoundError."""
        self._send(adapter_call("DELETE", adapter_id))
