"""Work that several ask for at the same time is done once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

_K = TypeVar("_K")
_V = TypeVar("_V")


class Once(Generic[_K, _V]):
    """Lets one caller work on a key while the others wait for what it comes to, an exception included.

    Nothing is kept: who asks after the work is done has it done again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._working: dict[_K, Future[_V]] = {}

    def __call__(self, key: _K, work: Callable[[], _V]) -> _V:
        """Return `work()`, or what another caller's work on `key`, under way now, returns or raises."""
        with self._lock:
            theirs = self._working.get(key)
            if theirs is None:
                mine = self._working[key] = Future()
        if theirs is not None:
            return theirs.result()
        try:
            result = work()
        except BaseException as error:
            self._forget(key)
            mine.set_exception(error)
            raise
        self._forget(key)
        mine.set_result(result)
        return result

    def _forget(self, key: _K) -> None:
        with self._lock:
            del self._working[key]
