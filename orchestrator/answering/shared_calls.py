"""Call results that the strategies of a job share."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from infra.contract.errors import DeadlineError
from infra.contract.prompt import ImagePart, Prompt
from infra.runtime.deadline import Deadline
from infra.runtime.single_flight import SingleFlight

#: Results kept. The strategies of a sample run within seconds of each other, so this covers every sample that the
#: workers can process at the same time. A retrieval result is a few kilobytes.
_MAX_RESULTS = 4096

T = TypeVar("T")


@dataclass(frozen=True)
class Shared(Generic[T]):
    """A result, and whether another caller had requested it already."""

    value: T
    is_reused: bool


class SharedCalls(Generic[T]):
    """An LRU cache of call results, with one execution per key.

    A request for a key whose call is running waits for that call. Failures are not cached.
    Called on: one event loop.
    """

    def __init__(self, size: int = _MAX_RESULTS) -> None:
        self._size = size
        self._results: OrderedDict[object, T] = OrderedDict()
        self._running: SingleFlight[object, T] = SingleFlight()

    async def get(
        self, key: object, call: Callable[[], Coroutine[Any, Any, T]], timeout_s: float | None = None
    ) -> Shared[T]:
        """Return the result of `call`, or the cached one. Raises DeadlineError, and what the call raises."""
        if key in self._results:
            self._results.move_to_end(key)
            return Shared(self._results[key], is_reused=True)

        is_reused = True

        async def call_and_cache() -> T:
            nonlocal is_reused
            is_reused = False
            result = self._results[key] = await call()
            while len(self._results) > self._size:
                self._results.popitem(last=False)
            return result

        deadline = Deadline.after(timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                result = await self._running.run_async(key, call_and_cache, deadline.ends_at)
                return Shared(result, is_reused)
        except TimeoutError as error:
            raise DeadlineError("the time for this answer ended while its adapters were being retrieved") from error


def prompt_digest(prompt: Prompt) -> str:
    """Return the SHA-256 of a prompt's roles, texts and image bytes."""
    digest = hashlib.sha256()
    for message in prompt.messages:
        for part in message.parts:
            content = part.data if isinstance(part, ImagePart) else part.text.encode()
            digest.update(f"{message.role.value} {type(part).__name__} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()
