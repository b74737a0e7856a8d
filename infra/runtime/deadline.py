"""The deadline of the call that is being served, which calls to other services must keep."""

from __future__ import annotations

import math
import time
from contextvars import ContextVar
from dataclasses import dataclass

from infra.contract.errors import DeadlineError

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


@dataclass(frozen=True)
class Deadline:
    """The time limit of work that makes several calls. `timeout_s` None: it has none."""

    started_at: float
    timeout_s: float | None

    @classmethod
    def after(cls, timeout_s: float | None) -> Deadline:
        """Return the deadline that ends `timeout_s` seconds from now."""
        return cls(time.monotonic(), timeout_s)

    def elapsed_s(self) -> float:
        """Return the seconds since the work began."""
        return time.monotonic() - self.started_at

    def remaining_s(self) -> float | None:
        """Return the seconds that are left, None without a limit. Raises DeadlineError when none are left."""
        if self.timeout_s is None:
            return None
        remaining_s = self.timeout_s - self.elapsed_s()
        if remaining_s <= 0:
            raise DeadlineError(f"the time limit of {self.timeout_s:.1f} s for this answer has passed")
        return remaining_s
