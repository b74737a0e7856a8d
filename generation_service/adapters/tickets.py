"""One composition's place on the way into the bank, and who hears what it comes to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from generation_service.adapters.leases import BankLease, Outcome, Ready
from generation_service.adapters.wanted import Wanted
from infra.contract.composition import Base, Composition, WeightedAdapter
from infra.runtime.logs import get_logger

log = get_logger(__name__)


@dataclass(eq=False)
class Ticket:
    """A composition on its way into the bank. `ahead`: it is one of the READ_AHEAD that may hold weights.

    `ready` is there until it is called or let go of; `forget` hears of a ticket cancelled before that.
    """

    ready: Ready | None
    forget: Callable[[Ticket], None] = lambda ticket: None
    composition: Composition = field(default_factory=Base)
    wanted: list[Wanted] = field(default_factory=list)
    applied: tuple[WeightedAdapter, ...] = ()
    cancelled: bool = False
    ahead: bool = False
    again: bool = False

    def cancel(self) -> None:
        """Let go of the receiver, and of the place among those who wait; from any thread, at any time.

        A lease that is being handed over in this moment is the receiver's to release; a later one is given back.
        """
        self.cancelled = True
        if self.ready is not None:
            self.ready = None
            self.forget(self)

    def tell(self, outcome: Outcome) -> None:
        """Hand over what the ticket came to, once; a receiver that fails, or is gone, keeps no lease."""
        ready, self.ready = self.ready, None
        try:
            if ready is not None:
                ready(outcome)
                return
        except Exception:
            log.exception("composition_not_received")
        if isinstance(outcome, BankLease):
            outcome.release()
