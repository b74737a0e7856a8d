"""Generation for callers on an event loop: admit and encode a request, then follow its sequence through the engine."""

from __future__ import annotations

import asyncio
import threading
import time
import unicodedata
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass

from generation_service import metrics
from generation_service.adapters.admission import Admission
from generation_service.adapters.checking import AdapterCheck
from generation_service.adapters.leases import ResidentAdapter
from generation_service.adapters.residency import Residency
from generation_service.engine.engine import Engine
from generation_service.engine.limits import EngineLimits
from generation_service.engine.sequence import Delta, Event, Request
from generation_service.models.base import BaseModel, ModelDescription
from generation_service.models.images import decode_images
from infra.contract.adapter import Adapter
from infra.contract.composition import Composition
from infra.contract.errors import InvalidArgumentError, field_path
from infra.contract.generation import Decoding, Generation
from infra.contract.prompt import Prompt, TextPart
from infra.runtime.images import ImageLimits

EventQueue = asyncio.Queue[Event]

_ENCODERS = 4
"""Threads that admit compositions, decode images and tokenize. Pillow and network calls release the GIL."""

_PRELOADERS = 2
"""Threads that admit the adapters of LoadAdapter. A slow catalogue then delays neither prompts, which the encoders
prepare, nor the event loop's default executor, on which the service stops."""


@dataclass(frozen=True)
class ServedModel:
    """What a server runs and accepts."""

    name: str
    revision: str
    description: ModelDescription
    limits: EngineLimits
    image_limits: ImageLimits
    max_adapters: int
    bank_ranks: int


class GenerationService:
    """Generates answers and loads adapters. Called on: one event loop, which it never blocks."""

    def __init__(
        self,
        served: ServedModel,
        model: BaseModel,
        admission: Admission,
        residency: Residency,
        engine: Engine,
        *,
        check: AdapterCheck,
        encoders: int = _ENCODERS,
    ) -> None:
        self.served = served
        self._model = model
        self._admission = admission
        self._residency = residency
        self._engine = engine
        self._check = check
        self._encoders = ThreadPoolExecutor(encoders, thread_name_prefix="encoder")
        self._preloaders = ThreadPoolExecutor(_PRELOADERS, thread_name_prefix="adapter-preloader")
        self._in_preparation = 0
        self._dispatcher: _EventDispatcher | None = None

    async def generate(
        self, prompt: Prompt, composition: Composition, decoding: Decoding, time_limit_s: float | None = None
    ) -> Generation:
        """Return the answer.

        Raises:
            InvalidArgumentError: the prompt or the composition is beyond a limit of this server.
            OverloadedError: the queue is full.
            DeadlineError: `time_limit_s` has passed.
            LoraRetrieverError: what `Admission.admit` raises, or loading the adapters.
        """
        async with aclosing(self._follow(prompt, composition, decoding, time_limit_s, deltas=False)) as events:
            async for event in events:
                if isinstance(event, Generation):
                    return event
        raise AssertionError("a sequence ends with a generation or an error")

    async def stream(
        self, prompt: Prompt, composition: Composition, decoding: Decoding, time_limit_s: float | None = None
    ) -> AsyncIterator[Delta | Generation]:
        """Yield the answer's text as it is decoded, then the whole answer. Closing the iterator cancels the request.

        Raises what `generate` raises.
        """
        async with aclosing(self._follow(prompt, composition, decoding, time_limit_s, deltas=True)) as events:
            async for event in events:
                yield event

    async def check_adapter(self, adapter: Adapter) -> None:
        """Raise the error that a request for `adapter` would get once it is registered."""
        await asyncio.get_running_loop().run_in_executor(self._preloaders, self._check, adapter)

    async def load_adapter(self, adapter_id: str, revision: str = "") -> ResidentAdapter:
        """Load an adapter and pin it in the bank. Raises what `Admission.admit` and `Residency.pin` raise."""
        loop = asyncio.get_running_loop()
        admitted = await loop.run_in_executor(self._preloaders, self._admission.admit_adapter, adapter_id, revision)
        return await asyncio.wrap_future(self._residency.pin(admitted))

    def unload_adapter(self, adapter_id: str) -> None:
        """Unpin an adapter. Raises NotFoundError if it is not resident."""
        self._residency.unpin(adapter_id)

    def residents(self) -> list[ResidentAdapter]:
        """Return the adapters in the bank, least recently used first."""
        return self._residency.residents()

    def close(self) -> None:
        """Stop the threads. Work that has not started is cancelled, work that runs is waited for."""
        self._preloaders.shutdown(wait=False, cancel_futures=True)
        self._encoders.shutdown(wait=True, cancel_futures=True)
        self._preloaders.shutdown(wait=True)

    async def _follow(
        self, prompt: Prompt, composition: Composition, decoding: Decoding, time_limit_s: float | None, deltas: bool
    ) -> AsyncGenerator[Delta | Generation, None]:
        deadline = None if time_limit_s is None else time.monotonic() + time_limit_s
        loop = asyncio.get_running_loop()
        request = await self._prepare(lambda: self._request(prompt, composition, decoding, deadline), loop)
        events: EventQueue = asyncio.Queue()
        dispatcher = self._dispatcher_of(loop)

        def listen(event: Event) -> None:
            if deltas or not isinstance(event, Delta):
                dispatcher.send(events, event)

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

    async def _prepare(self, make: Callable[[], Request], loop: asyncio.AbstractEventLoop) -> Request:
        """Make a request on an encoder thread. Requests in preparation count towards the queue's limit."""
        self._engine.check_room(in_preparation=self._in_preparation)
        self._in_preparation += 1
        try:
            return await loop.run_in_executor(self._encoders, make)
        finally:
            self._in_preparation -= 1

    def _request(self, prompt: Prompt, composition: Composition, decoding: Decoding, deadline: float | None) -> Request:
        """Admit the composition and encode the prompt. Called on: encoder thread."""
        admitted = self._admission.admit(composition)
        with field_path("prompt"):
            max_tokens = self.served.limits.max_sequence_tokens
            check_text(prompt, max_tokens, self._model.description.token_characters)
            encoded = self._model.encode(prompt, decode_images(prompt, self.served.image_limits), max_tokens)
        return Request(encoded, admitted, decoding, deadline)

    def _dispatcher_of(self, loop: asyncio.AbstractEventLoop) -> _EventDispatcher:
        if self._dispatcher is None or self._dispatcher.loop is not loop:
            self._dispatcher = _EventDispatcher(loop)
        return self._dispatcher


def check_text(prompt: Prompt, max_tokens: int, token_characters: int) -> None:
    """Raise InvalidArgumentError for text too long for `max_tokens`, without tokenizing it."""
    texts = [part.text for message in prompt.messages for part in message.parts if isinstance(part, TextPart)]
    limit = max_tokens * token_characters
    length = sum(map(len, texts))
    if length > limit:
        # Tokenizers may normalize to NFC first, which shortens text.
        length = len(unicodedata.normalize("NFC", "".join(texts)))
    if length > limit:
        raise InvalidArgumentError(
            "",
            f"has {length} characters of text; this server holds {max_tokens} tokens for prompt and answer together, "
            f"at most {limit} characters: send less text",
            characters=str(length),
            limit=str(limit),
        )


class _EventDispatcher:
    """Carries events from engine threads to queues of one event loop.

    Batches events so that the loop is woken once per batch: `call_soon_threadsafe` writes to a socket, which costs the
    engine thread about 0.5 ms on a busy machine (measured, see docs/lab_log.md).
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._lock = threading.Lock()  # Guards: `_batch`.
        self._batch: list[tuple[EventQueue, Event]] = []

    def send(self, queue: EventQueue, event: Event) -> None:
        """Put `event` into `queue` when the loop wakes. Safe from any thread."""
        with self._lock:
            self._batch.append((queue, event))
            first = len(self._batch) == 1
        if first:
            self.loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        with self._lock:
            batch, self._batch = self._batch, []
        for queue, event in batch:
            queue.put_nowait(event)
