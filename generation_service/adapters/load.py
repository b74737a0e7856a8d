"""The state of one composition on its way into the adapter bank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from generation_service.adapters.admission import AdmittedComposition
from generation_service.adapters.leases import BankLease
from generation_service.adapters.ranges import RangeRequest

Outcome = BankLease | Exception
OnReady = Callable[[Outcome], None]


class LoadState(Enum):
    """Where a load is. It moves down this list, except that losing a range to eviction moves it back to be read."""

    QUEUED = auto()
    """Waits until it may hold weights on the host."""
    READING = auto()
    """On a reader thread, or about to be."""
    READY_TO_PLACE = auto()
    """Has everything that is not resident on the host; waits for the placer, and then for room."""
    LEASED = auto()
    """Ended: its lease was handed over."""
    FAILED = auto()
    """Ended with an error."""
    CANCELLED = auto()
    """Ended by its caller. The thread that works on it, if any, frees its weights when it notices."""


ENDED_STATES = (LoadState.LEASED, LoadState.FAILED, LoadState.CANCELLED)


@dataclass(eq=False)
class CompositionLoad:
    """A composition on its way into the bank.

    `state` and `on_ready` are guarded by the residency's lock; `on_ready` is None once the load has ended. `ranges` and
    `lost_range` belong to the one thread that works on the load. `lost_range`: a range was evicted while it waited, so
    it reads all ranges the next time, which nothing can evict, and is placed before the others.
    """

    composition: AdmittedComposition
    ranges: list[RangeRequest]
    on_ready: OnReady | None
    on_cancel: Callable[[CompositionLoad], None]
    state: LoadState = LoadState.QUEUED
    lost_range: bool = False

    def cancel(self) -> None:
        """Cancel the load. Safe from any thread, at any time; does nothing once it has ended.

        A lease that is being handed over at this moment is the receiver's to release.
        """
        self.on_cancel(self)
