"""Deadlines: of the call that is being served, of work that makes several calls, and the defaults of clients.

This is the only place that computes remaining time from a deadline.
"""

from __future__ import annotations

import math
import time
from contextvars import ContextVar
from dataclasses import dataclass

from infra.contract.errors import DeadlineError

#: Default of calls that a healthy service answers within milliseconds, such as lookups in the catalogue.
QUICK_TIMEOUT_S = 30.0
#: Default of calls that run a model: an answer or an embedding may wait in a queue first.
LONG_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Deadline:
    """The time limit of work that may make several calls. `timeout_s` None: it has none."""

    started_at: float
    timeout_s: float | None

    @classmethod
    def after(cls, timeout_s: float | None) -> Deadline:
        """Return the deadline that ends `timeout_s` seconds from now."""
        return cls(time.monotonic(), timeout_s)

    @property
    def ends_at(self) -> float:
        """The end on the clock of time.monotonic(); infinite without a limit."""
        return math.inf if self.timeout_s is None else self.started_at + self.timeout_s

    def elapsed_s(self) -> float:
        """Return the seconds since the work began."""
        return time.monotonic() - self.started_at

    def remaining_s(self) -> float | None:
        """Return the seconds that are left, None without a limit. Raises DeadlineError when none are left."""
        if self.timeout_s is None:
            return None
        remaining_s = self.ends_at - time.monotonic()
        if remaining_s <= 0:
            raise DeadlineError(f"the time limit of {self.timeout_s:.1f} s for this answer has passed")
        return remaining_s


#: Context of the served call: tasks and executor threads that it starts with a copied context share it.
_current: ContextVar[Deadline | None] = ContextVar("loraretriever_deadline", default=None)


def bind_deadline(timeout_s: float | None) -> None:
    """Make the call that this context serves end `timeout_s` seconds from now; None or infinite: it has no deadline."""
    is_unlimited = timeout_s is None or math.isinf(timeout_s)
    _current.set(None if is_unlimited else Deadline.after(timeout_s))


def ends_at() -> float:
    """Return when the call being served ends, on the clock of time.monotonic(); infinite without a deadline."""
    deadline = _current.get()
    return math.inf if deadline is None else deadline.ends_at


def remaining_s() -> float | None:
    """Return the seconds left to the call being served: 0 after its deadline, None without one."""
    end = ends_at()
    return None if math.isinf(end) else max(end - time.monotonic(), 0.0)


def clipped(timeout_s: float | None) -> float | None:
    """Return a timeout shortened to the seconds left to the call being served; None: no limit."""
    return min((seconds for seconds in (timeout_s, remaining_s()) if seconds is not None), default=None)
