"""Prompts -> answers, for callers on an event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor

from generation_service.engine import Engine
from generation_service.images import decode_images
from generation_service.models.base import BaseModel, EncodedPrompt
from generation_service.sequence import Delta, Event, Request
from infra.contract.composition import Composition
from infra.contract.errors import field
from infra.contract.generation import Decoding, Generation
from infra.contract.prompt import Prompt
from infra.runtime.images import ImageLimits


class Answers:
    """Encodes prompts on threads of its own, and follows their sequences through the engine."""

    def __init__(self, engine: Engine, model: BaseModel, image_limits: ImageLimits, encoders: int = 4) -> None:
        self._engine = engine
        self._model = model
        self._image_limits = image_limits
        self._encoders = ThreadPoolExecutor(encoders, thread_name_prefix="encoder")

    async def generate(
        self, prompt: Prompt, composition: Composition, decoding: Decoding, time_limit_s: float | None = None
    ) -> Generation:
        """Return the answer. Raises InvalidArgumentError, OverloadedError, DeadlineError, or its adapters' own."""
        async for event in self.stream(prompt, composition, decoding, time_limit_s):
            if isinstance(event, Generation):
                return event
        raise AssertionError("a stream ends in a generation or an error")

    async def stream(
        self, prompt: Prompt, composition: Composition, decoding: Decoding, time_limit_s: float | None = None
    ) -> AsyncIterator[Delta | Generation]:
        """Yield the answer as it grows, then the whole of it. Leaving the iteration cancels the request."""
        deadline = None if time_limit_s is None else time.monotonic() + time_limit_s
        self._engine.check_room()
        loop = asyncio.get_running_loop()
        encoded = await loop.run_in_executor(self._encoders, self._encode, prompt)
        events: asyncio.Queue[Event] = asyncio.Queue()
        sequence = self._engine.submit(Request(encoded, composition, decoding, deadline), _into(events, loop))
        try:
            while True:
                event = await events.get()
                if isinstance(event, Exception):
                    raise event
                yield event
                if isinstance(event, Generation):
                    return
        finally:
            self._engine.cancel(sequence)

    def close(self) -> None:
        """End the threads."""
        self._encoders.shutdown(wait=True, cancel_futures=True)

    def _encode(self, prompt: Prompt) -> EncodedPrompt:
        with field("prompt"):
            return self._model.encode(prompt, decode_images(prompt, self._image_limits))


def _into(events: asyncio.Queue[Event], loop: asyncio.AbstractEventLoop) -> Callable[[Event], None]:
    """Return a listener that may be called from any thread."""

    def put(event: Event) -> None:
        loop.call_soon_threadsafe(events.put_nowait, event)

    return put
