"""Prompts -> answers, for callers on an event loop."""

from __future__ import annotations

import asyncio
import threading
import time
import unicodedata
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

from generation_service import metrics
from generation_service.engine.engine import Engine
from generation_service.engine.sequence import Delta, Event, Request
from generation_service.models.base import BaseModel
from generation_service.models.images import decode_images
from infra.contract.composition import Composition
from infra.contract.errors import InvalidArgumentError, field_path
from infra.contract.generation import Decoding, Generation
from infra.contract.prompt import Prompt, TextPart
from infra.runtime.images import ImageLimits

Events = asyncio.Queue[Event]


class Answers:
    """Checks and encodes requests on threads of its own, and follows their sequences through the engine."""

    def __init__(self, engine: Engine, model: BaseModel, image_limits: ImageLimits, encoders: int = 4) -> None:
        self._engine = engine
        self._model = model
        self._image_limits = image_limits
        self._encoders = ThreadPoolExecutor(encoders, thread_name_prefix="encoder")
        self._preparing = 0
        self._post: _Post | None = None

    async def generate(
        self, prompt: Prompt, composition: Composition, decoding: Decoding, time_limit_s: float | None = None
    ) -> Generation:
        """Return the answer. Raises InvalidArgumentError, OverloadedError, DeadlineError, or its adapters' own."""
        async with aclosing(self._follow(prompt, composition, decoding, time_limit_s, deltas=False)) as events:
            async for event in events:
                if isinstance(event, Generation):
                    return event
        raise AssertionError("a sequence ends in a generation or an error")

    async def stream(
        self, prompt: Prompt, composition: Composition, decoding: Decoding, time_limit_s: float | None = None
    ) -> AsyncIterator[Delta | Generation]:
        """Yield the answer as it grows, then the whole of it. Closing the iterator cancels the request."""
        async with aclosing(self._follow(prompt, composition, decoding, time_limit_s, deltas=True)) as events:
            async for event in events:
                yield event

    def close(self) -> None:
        """End the threads."""
        self._encoders.shutdown(wait=True, cancel_futures=True)

    async def _follow(
        self, prompt: Prompt, composition: Composition, decoding: Decoding, time_limit_s: float | None, deltas: bool
    ) -> AsyncGenerator[Delta | Generation, None]:
        deadline = None if time_limit_s is None else time.monotonic() + time_limit_s
        loop = asyncio.get_running_loop()
        request = await self._prepared(lambda: self._request(prompt, composition, decoding, deadline), loop)
        events: Events = asyncio.Queue()
        post = self._post = self._post if self._post and self._post.loop is loop else _Post(loop)

        def listen(event: Event) -> None:
            if deltas or not isinstance(event, Delta):
                post.send(events, event)

        sequence = self._engine.submit(request, listen)
        try:
            while True:
                event = await events.get()
                if isinstance(event, Exception):
                    raise event
                if isinstance(event, Generation):
                    metrics.count(event)
                    yield event
                    return
                yield event
        finally:
            self._engine.cancel(sequence)

    async def _prepared(self, make: Callable[[], Request], loop: asyncio.AbstractEventLoop) -> Request:
        """Make a request on another thread; one that is being made counts as one that waits."""
        self._engine.check_room(beside=self._preparing)
        self._preparing += 1
        try:
            return await loop.run_in_executor(self._encoders, make)
        finally:
            self._preparing -= 1

    def _request(self, prompt: Prompt, composition: Composition, decoding: Decoding, deadline: float | None) -> Request:
        """Look the adapters up and encode the prompt. Raises for whatever of them can never be served."""
        checked = self._engine.check_composition(composition)
        with field_path("prompt"):
            max_tokens = self._engine.limits.max_sequence_tokens
            check_text(prompt, max_tokens, self._model.description.token_characters)
            encoded = self._model.encode(prompt, decode_images(prompt, self._image_limits), max_tokens)
        return Request(encoded, checked, decoding, deadline)


def check_text(prompt: Prompt, max_tokens: int, token_characters: int) -> None:
    """Raise InvalidArgumentError for text that no `max_tokens` tokens can hold: it is told without tokenising it."""
    texts = [part.text for message in prompt.messages for part in message.parts if isinstance(part, TextPart)]
    limit = max_tokens * token_characters
    length = sum(map(len, texts))
    if length > limit:
        length = len(unicodedata.normalize("NFC", "".join(texts)))
    if length > limit:
        raise InvalidArgumentError(
            "",
            f"has {length} characters of text; this server holds {max_tokens} tokens for prompt and answer together, "
            f"at most {limit} characters: send less text",
            characters=str(length),
            limit=str(limit),
        )


class _Post:
    """Carries events to queues of an event loop, waking it once for all that gather meanwhile: a wake is dear."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._lock = threading.Lock()
        self._gathered: list[tuple[Events, Event]] = []

    def send(self, events: Events, event: Event) -> None:
        """Put `event` into `events` soon. From any thread."""
        with self._lock:
            self._gathered.append((events, event))
            first = len(self._gathered) == 1
        if first:
            self.loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        with self._lock:
            gathered, self._gathered = self._gathered, []
        for events, event in gathered:
            events.put_nowait(event)
