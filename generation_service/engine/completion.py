"""How sequences end: each once, its slot and lease freed before its caller hears of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Many

from generation_service.engine.scheduler import Scheduler
from generation_service.engine.sequence import Event, Sequence
from infra.contract.errors import CancelledError, DeadlineError, InternalError, LoraRetrieverError
from infra.contract.generation import FinishReason
from infra.runtime.logs import get_logger

log = get_logger(__name__)


class Endings:
    """Ends the sequences of `scheduler`. `changed` guards it and is notified of every end; `clear` empties a slot.

    `end` may be called from any thread, the rest from the one that owns the device.
    """

    def __init__(self, scheduler: Scheduler, changed: threading.Condition, clear: Callable[[int], None]) -> None:
        self._scheduler = scheduler
        self._changed = changed
        self._clear = clear

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a sequence in its answer."""
        try:
            sequence.emit(sequence.text.finish())
            answer = sequence.generation(reason, time.monotonic())
        except Exception as error:
            self.fail([sequence], error)
            return
        if self._leave(sequence):
            _tell(sequence, answer)

    def drop(self, sequence: Sequence) -> None:
        """End a sequence that is cancelled or late. What it left of an unread prompt was never found finite."""
        if sequence.slot is not None and sequence.unread:
            self._clear_slots([sequence.slot])
        if sequence.cancelled:
            self.end([sequence], CancelledError("the request was cancelled"))
        else:
            self.end([sequence], DeadlineError(f"the deadline passed {sequence.progress}"))

    def fail(self, sequences: Many[Sequence], error: Exception) -> None:
        """End the sequences of a step that failed; the next step runs without them."""
        log.error("step_failed", sequences=len(sequences), exc_info=error)
        self._clear_slots([sequence.slot for sequence in sequences if sequence.slot is not None])
        if isinstance(error, LoraRetrieverError):
            self.end(sequences, error)
            return
        failure = InternalError(f"a step of the model failed and ended the {len(sequences)} requests in it: retry")
        failure.__cause__ = error
        self.end(sequences, failure)

    def end(self, sequences: Many[Sequence], error: Exception) -> None:
        """End sequences in an error. Those that have ended hear nothing more."""
        for sequence in sequences:
            if self._leave(sequence):
                _tell(sequence, error)

    def _leave(self, sequence: Sequence) -> bool:
        """Free what the sequence holds; return False when it had left before."""
        with self._changed:
            if sequence.ended:
                return False
            sequence.ended = True
            self._scheduler.remove(sequence)
            self._changed.notify()
        if sequence.ticket is not None:
            sequence.ticket.cancel()
        if sequence.lease is not None:
            sequence.lease.release()
        return True

    def _clear_slots(self, slots: Many[int]) -> None:
        """Let nothing of a failed step reach the next sequence in its slot: 0 times NaN is NaN under any mask."""
        try:
            for slot in slots:
                self._clear(slot)
        except Exception:
            log.exception("slots_not_cleared", slots=list(slots))


def _tell(sequence: Sequence, event: Event) -> None:
    """Hand a listener its end; one that fails harms nobody else."""
    try:
        sequence.listener(event)
    except Exception:
        log.exception("listener_failed", sequence=sequence.number)
