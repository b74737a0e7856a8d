"""The deadline of the call that is being served, which calls to other services must keep."""

from __future__ import annotations

import math
import time
from contextvars import ContextVar

_ends_at: ContextVar[float | None] = ContextVar("loraretriever_deadline", default=None)


def bind_deadline(remaining_s: float | None) -> None:
    """Say how many seconds from now this thread's or task's call ends; None or infinite: it has no deadline."""
    unlimited = remaining_s is None or math.isinf(remaining_s)
    _ends_at.set(None if unlimited or remaining_s is None else time.monotonic() + remaining_s)


def remaining_s() -> float | None:
    """Return the seconds left to the call that is being served, 0 when they are over, None without a deadline."""
    ends_at = _ends_at.get()
    return None if ends_at is None else max(ends_at - time.monotonic(), 0.0)


def clipped(timeout_s: float | None) -> float | None:
    """Return a timeout cut to the seconds left."""
    left = remaining_s()
    if left is None or timeout_s is None:
        return left if timeout_s is None else timeout_s
    return min(left, timeout_s)
