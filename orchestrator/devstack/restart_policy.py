"""When a program that died is started again: after a pause that grows, and not for ever."""

from __future__ import annotations

import time

FIRST_PAUSE_S = 0.5
SHORT_LIFE_S = 60.0
MOST_DEATHS = 5


class Revival:
    """The deaths of one program. One that had lived for SHORT_LIFE_S counts as the first."""

    def __init__(self) -> None:
        self._deaths = 0
        self._due_at = 0.0

    @property
    def is_due(self) -> bool:
        """Whether the pause after the last death is over."""
        return time.monotonic() >= self._due_at

    def may_follow(self, started_at: float) -> bool:
        """Count a death now of what was started at `started_at` (time.monotonic); return whether to start it again.

        Not after MOST_DEATHS in a row, each within SHORT_LIFE_S of the start.
        """
        now = time.monotonic()
        self._deaths = self._deaths + 1 if now - started_at < SHORT_LIFE_S else 1
        self._due_at = now + FIRST_PAUSE_S * 2 ** (self._deaths - 1)
        return self._deaths < MOST_DEATHS
