"""How long a question has taken, and how long it still may."""

from __future__ import annotations

import time

from infra.contract.errors import DeadlineError


class Clock:
    """Seconds since the question came, and seconds it still has (None: as many as it takes)."""

    def __init__(self, timeout_s: float | None) -> None:
        self._start = time.monotonic()
        self._timeout_s = timeout_s

    def elapsed_s(self) -> float:
        """Return the seconds since the question came."""
        return time.monotonic() - self._start

    def remaining_s(self) -> float | None:
        """Return the seconds that are left, None without a limit. Raises DeadlineError when none are."""
        if self._timeout_s is None:
            return None
        remaining_s = self._timeout_s - self.elapsed_s()
        if remaining_s <= 0:
            raise DeadlineError(f"the {self._timeout_s:.1f} s given for this answer are over")
        return remaining_s
