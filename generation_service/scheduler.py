"""Who waits, who runs, and in which slot. Pure: it knows no tensors and no threads."""

from __future__ import annotations

import heapq

from generation_service.sequence import Sequence
from infra.contract.errors import OverloadedError


class Scheduler:
    """First come, first served admission of sequences into a fixed number of slots.

    A sequence whose adapters are still loading does not hold up those behind it. One step admits prompts of at most
    `prefill_tokens` tokens together (but always one), so that running answers are never held up for longer.
    """

    def __init__(self, slots: int, max_waiting: int, prefill_tokens: int) -> None:
        self._max_waiting = max_waiting
        self._prefill_tokens = prefill_tokens
        self._slots = slots
        self._free = list(range(slots))
        self._waiting: dict[int, Sequence] = {}
        self._running: dict[int, Sequence] = {}

    @property
    def waiting(self) -> list[Sequence]:
        """Sequences without a slot, oldest first."""
        return list(self._waiting.values())

    @property
    def waiting_count(self) -> int:
        """How many sequences wait. Safe from any thread."""
        return len(self._waiting)

    @property
    def running(self) -> list[Sequence]:
        """Sequences with a slot, in slot order."""
        return [self._running[slot] for slot in sorted(self._running)]

    @property
    def free_slots(self) -> int:
        """Slots that no sequence holds."""
        return len(self._free)

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing that waits could."""
        return not self._running and not any(sequence.lease is not None for sequence in self._waiting.values())

    def check_room(self, beside: int = 0) -> None:
        """Raise OverloadedError when one more sequence could not wait, `beside` others being on their way."""
        waiting = len(self._waiting) + beside
        if waiting >= self._max_waiting:
            raise OverloadedError(
                f"{waiting} requests wait already and the queue holds {self._max_waiting}: retry later",
                waiting=str(waiting),
                max_waiting=str(self._max_waiting),
            )

    def enqueue(self, sequence: Sequence) -> None:
        """Let `sequence` wait. Raises OverloadedError when the queue is full."""
        self.check_room()
        self._waiting[sequence.number] = sequence

    def admit(self) -> list[Sequence]:
        """Give free slots to the oldest sequences that are ready, and return those to prefill now."""
        admitted: list[Sequence] = []
        budget = self._prefill_tokens
        for sequence in self.waiting:
            if not self._free:
                break
            if sequence.lease is None:
                continue
            if admitted and sequence.prompt_length > budget:
                break
            budget -= sequence.prompt_length
            del self._waiting[sequence.number]
            sequence.slot = heapq.heappop(self._free)
            self._running[sequence.slot] = sequence
            admitted.append(sequence)
        return admitted

    def remove(self, sequence: Sequence) -> None:
        """Take `sequence` out, wherever it is, and free its slot."""
        self._waiting.pop(sequence.number, None)
        if sequence.slot is not None and self._running.get(sequence.slot) is sequence:
            del self._running[sequence.slot]
            heapq.heappush(self._free, sequence.slot)
            sequence.slot = None

    def next_deadline(self) -> float | None:
        """Return the earliest deadline of all, as a time of `time.monotonic`."""
        everyone = (*self._waiting.values(), *self._running.values())
        return min((s.request.deadline for s in everyone if s.request.deadline is not None), default=None)
