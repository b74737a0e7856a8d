"""Who waits, whose prompt is read, who decodes, and in which slot. Pure: it knows no tensors and no threads."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from generation_service.engine.sequence import Sequence
from infra.contract.errors import OverloadedError


@dataclass(frozen=True)
class Chunk:
    """The next `tokens` of a prompt that is being read."""

    sequence: Sequence
    tokens: int


class Scheduler:
    """First come, first served admission of sequences into a fixed number of slots.

    A sequence whose adapters are still loading does not hold up those behind it. One in a slot is either reading its
    prompt or decoding; one step reads at most `prefill_tokens` tokens of prompts, a long one in several chunks, short
    ones together, so that answers that decode never wait for longer.
    """

    def __init__(self, slots: int, max_waiting: int, prefill_tokens: int) -> None:
        self._max_waiting = max_waiting
        self._prefill_tokens = prefill_tokens
        self._free = list(range(slots))
        self._waiting: dict[int, Sequence] = {}
        self._seated: dict[int, Sequence] = {}

    @property
    def waiting(self) -> list[Sequence]:
        """Sequences without a slot, oldest first."""
        return list(self._waiting.values())

    @property
    def waiting_count(self) -> int:
        """How many sequences wait. Safe from any thread."""
        return len(self._waiting)

    @property
    def reading(self) -> list[Sequence]:
        """Sequences with a slot whose prompt is not read to its end, in the order of their admission."""
        return [sequence for sequence in self._seated.values() if sequence.unread]

    @property
    def decoding(self) -> list[Sequence]:
        """Sequences whose prompt has been read, in slot order."""
        return [self._seated[slot] for slot in sorted(self._seated) if not self._seated[slot].unread]

    @property
    def everyone(self) -> list[Sequence]:
        """All of them, those who wait first."""
        return [*self._waiting.values(), *self._seated.values()]

    @property
    def free_slots(self) -> int:
        """Slots that no sequence holds. Safe from any thread."""
        return len(self._free)

    @property
    def idle(self) -> bool:
        """Whether nothing has a slot and nothing that waits could."""
        return not self._seated and not any(sequence.lease is not None for sequence in self._waiting.values())

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
        """Give free slots to the oldest sequences whose adapters are there; return those that got one."""
        ready = [sequence for sequence in self._waiting.values() if sequence.lease is not None]
        admitted = ready[: len(self._free)]
        for sequence in admitted:
            del self._waiting[sequence.number]
            sequence.slot = heapq.heappop(self._free)
            self._seated[sequence.slot] = sequence
        return admitted

    def chunks(self) -> list[Chunk]:
        """Share one step's `prefill_tokens` out among the prompts being read, first come first served."""
        left = self._prefill_tokens
        chunks = []
        for sequence in self.reading:
            if not left:
                break
            chunks.append(Chunk(sequence, min(sequence.unread, left)))
            left -= chunks[-1].tokens
        return chunks

    def leaving(self, now: float) -> list[Sequence]:
        """Return those who are cancelled, or whose deadline is not after `now`, a time of `time.monotonic`."""
        return [sequence for sequence in self.everyone if sequence.cancelled or sequence.expired(now)]

    def remove(self, sequence: Sequence) -> None:
        """Take `sequence` out, wherever it is, and free its slot."""
        self._waiting.pop(sequence.number, None)
        if sequence.slot is not None and self._seated.get(sequence.slot) is sequence:
            del self._seated[sequence.slot]
            heapq.heappush(self._free, sequence.slot)
            sequence.slot = None

    def next_deadline(self) -> float | None:
        """Return the earliest deadline of all, as a time of `time.monotonic`."""
        return min((s.request.deadline for s in self.everyone if s.request.deadline is not None), default=None)
