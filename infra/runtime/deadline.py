"""Deadlines: of the call that is being served, of work that makes several calls, and the defaults of clients.

A deadline is a time on the clock of time.monotonic(); infinity means that there is none.
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
#: Limit of the health check command, below the 5 s after which the images' HEALTHCHECK kills it: it then still prints
#: the reason.
HEALTH_CHECK_TIMEOUT_S = 3.0
#: Limit of the look-ups of what answers a job. A job is accepted while a tier is away, so its creation must find that
#: out quickly.
PROVENANCE_TIMEOUT_S = 5.0


def seconds_until(end: float) -> float:
    """Return the seconds until `end`: 0 once it has passed, infinite if `end` is."""
    return max(end - time.monotonic(), 0.0)


def has_passed(end: float) -> bool:
    """Return whether `end` has been reached."""
    return end <= time.monotonic()


def as_timeout(end: float) -> float | None:
    """Return the seconds until `end` as the standard library takes them: None if `end` is infinite."""
    return None if math.isinf(end) else seconds_until(end)


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
        """When the work ends; infinite without a limit."""
        return math.inf if self.timeout_s is None else self.started_at + self.timeout_s

    def elapsed_s(self) -> float:
        """Return the seconds since the work began."""
        return time.monotonic() - self.started_at

    def remaining_s(self) -> float | None:
        """Return the seconds that are left, None without a limit. Raises DeadlineError when none are left."""
        if has_passed(self.ends_at):
            raise DeadlineError(f"the time limit of {self.timeout_s:.1f} s for this answer has passed")
        return as_timeout(self.ends_at)


#: Context of the served call: tasks and executor threads that it starts with a copied context share it.
_current: ContextVar[Deadline | None] = ContextVar("loraretriever_deadline", default=None)


def bind_deadline(timeout_s: float | None) -> None:
    """Make the call that this context serves end `timeout_s` seconds from now; None or infinite: it has no deadline."""
    is_unlimited = timeout_s is None or math.isinf(timeout_s)
    _current.set(None if is_unlimited else Deadline.after(timeout_s))


def ends_at() -> float:
    """Return when the call being served ends; infinite without a deadline."""
    deadline = _current.get()
    return math.inf if deadline is None else deadline.ends_at


def remaining_s() -> float | None:
    """Return the seconds left to the call being served: 0 after its deadline, None without one."""
    return as_timeout(ends_at())


def clipped(timeout_s: float | None) -> float | None:
    """Return a timeout shortened to the seconds left to the call being served; None: no limit."""
    return min((seconds for seconds in (timeout_s, remaining_s()) if seconds is not None), default=None)
