"""Retrieval asked once for all strategies of a job that put the same question."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from infra.contract.errors import DeadlineError
from infra.contract.prompt import ImagePart, Prompt

MAX_SHARED = 4096

T = TypeVar("T")


@dataclass(frozen=True)
class Shared(Generic[T]):
    """A result, and whether somebody else had asked for it already."""

    value: T
    is_reused: bool


class SharedCalls(Generic[T]):
    """Results of calls by key, each made once; the last `size` are remembered, failures are not.

    Callers of one event loop that ask for a key while its call is under way wait for that call.
    """

    def __init__(self, size: int = MAX_SHARED) -> None:
        self._size = size
        self._calls: OrderedDict[object, asyncio.Task[T]] = OrderedDict()

    async def get(
        self, key: object, call: Callable[[], Coroutine[Any, Any, T]], timeout_s: float | None = None
    ) -> Shared[T]:
        """Return what `call` gives, or gave for this key before. Raises DeadlineError, and what the call raises."""
        task = self._calls.get(key)
        is_reused = task is not None
        if task is None:
            task = asyncio.get_running_loop().create_task(call())
            self._calls[key] = task
            task.add_done_callback(lambda done: self._forget_failure(key, done))
            while len(self._calls) > self._size:
                self._calls.popitem(last=False)
        self._calls.move_to_end(key)
        try:
            async with asyncio.timeout(timeout_s):
                return Shared(await asyncio.shield(task), is_reused)
        except TimeoutError as error:
            raise DeadlineError("the time for this answer ended while its adapters were looked up") from error

    def _forget_failure(self, key: object, task: asyncio.Task[T]) -> None:
        failed = task.cancelled() or task.exception() is not None
        if failed and self._calls.get(key) is task:
            del self._calls[key]


def prompt_digest(prompt: Prompt) -> str:
    """Return the SHA-256 of a prompt's roles, texts and image bytes."""
    digest = hashlib.sha256()
    for message in prompt.messages:
        for part in message.parts:
            content = part.data if isinstance(part, ImagePart) else part.text.encode()
            digest.update(f"{message.role.value} {type(part).__name__} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()
