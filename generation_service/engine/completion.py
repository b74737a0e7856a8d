"""How sequences end: each exactly once, its slot and lease freed before its listener is called."""

from __future__ import annotations

import threading
from collections import abc

from generation_service.engine.scheduler import Scheduler
from generation_service.engine.sequence import Event, Phase, RunningSequence, Sequence
from infra.contract.errors import CancelledError, DeadlineError, InternalError, LoraRetrieverError
from infra.contract.generation import FinishReason
from infra.runtime.logs import get_logger

log = get_logger(__name__)


class Completion:
    """Ends the sequences of `scheduler`.

    `changed` guards the scheduler and the phases of its sequences, and is notified of every end. `clear_slot` zeroes
    the KV cache of a slot. `end` may be called from any thread, everything else from the engine thread only.
    """

    def __init__(
        self, scheduler: Scheduler, changed: threading.Condition, clear_slot: abc.Callable[[int], None]
    ) -> None:
        self._scheduler = scheduler
        self._changed = changed
        self._clear_slot = clear_slot

    def finish(self, running: RunningSequence, reason: FinishReason) -> None:
        """End a sequence with its answer."""
        sequence = running.sequence
        try:
            sequence.emit(sequence.text.finish())
            answer = running.generation(reason)
        except Exception as error:
            self.fail([running], error)
            return
        if self._remove(sequence):
            _notify(sequence, answer)

    def evict(self, sequence: Sequence) -> None:
        """End a sequence that is cancelled or past its deadline."""
        with self._changed:
            running = self._scheduler.running_of(sequence)
        if running is not None and sequence.phase is Phase.PREFILLING:
            # Finiteness is checked on logits, which a half-prefilled prompt never had: its KV may hold NaN.
            self._clear_slots([running.seat.slot])
        if sequence.cancelled:
            self.end([sequence], CancelledError("the request was cancelled"))
        else:
            progress = "in the queue" if running is None else running.progress
            self.end([sequence], DeadlineError(f"the deadline passed {progress}"))

    def fail(self, sequences: abc.Sequence[RunningSequence], error: Exception) -> None:
        """End the sequences of a step that failed. The next step runs without them."""
        log.error("step_failed", sequences=len(sequences), exc_info=error)
        self._clear_slots([running.seat.slot for running in sequences])
        self.end([running.sequence for running in sequences], _step_error(error, len(sequences)))

    def fail_all(self, error: Exception) -> None:
        """End every sequence, waiting ones included, after an error that no single step accounts for."""
        with self._changed:
            running, sequences = self._scheduler.running, self._scheduler.all_sequences
        log.error("step_failed", sequences=len(sequences), exc_info=error)
        self._clear_slots([sequence.seat.slot for sequence in running])
        self.end(sequences, _step_error(error, len(sequences)))

    def end(self, sequences: abc.Sequence[Sequence], error: Exception) -> None:
        """End sequences with an error. Sequences that have already ended are skipped."""
        for sequence in sequences:
            if self._remove(sequence):
                _notify(sequence, error)

    def _remove(self, sequence: Sequence) -> bool:
        """Free what the sequence holds; return False if it has already ended."""
        with self._changed:
            if sequence.phase is Phase.FINISHED:
                return False
            sequence.phase = Phase.FINISHED
            lease = self._scheduler.remove(sequence)
            self._changed.notify()
        # Outside the lock: both take the residency's lock, which must not nest in the engine's.
        if sequence.load is not None:
            sequence.load.cancel()
        if lease is not None:
            lease.release()
        return True

    def _clear_slots(self, slots: abc.Sequence[int]) -> None:
        """Zero the slots of a failed step: an attention mask multiplies by 0, and 0 times NaN is NaN."""
        try:
            for slot in slots:
                self._clear_slot(slot)
        except Exception:
            log.exception("slots_not_cleared", slots=list(slots))


def _step_error(error: Exception, count: int) -> Exception:
    """Return what callers get for a step that failed with `error`: the contract's errors as they are, others hidden."""
    if isinstance(error, LoraRetrieverError):
        return error
    failure = InternalError(f"a step of the model failed and ended the {count} requests in it: retry")
    failure.__cause__ = error
    return failure


def _notify(sequence: Sequence, event: Event) -> None:
    """Call the listener with the end of its sequence. An error in one listener must not reach other sequences."""
    try:
        sequence.listener(event)
    except Exception:
        log.exception("listener_failed", sequence=sequence.number)
