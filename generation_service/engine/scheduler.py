"""Which sequences wait, prefill and decode, and in which slots. Pure: no tensors, no threads, no I/O."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from generation_service.engine.protocols import Lease
from generation_service.engine.sequence import Phase, RunningSequence, Seat, Sequence
from infra.contract.errors import OverloadedError


@dataclass(frozen=True)
class Chunk:
    """The next `tokens` of a prompt to prefill."""

    running: RunningSequence
    tokens: int


class Scheduler:
    """First come, first served admission of sequences into a fixed number of slots.

    A sequence whose adapters are still loading does not delay the ones behind it. One step prefills at most
    `prefill_tokens` prompt tokens, a long prompt in several chunks and short ones together, which bounds the time
    between two tokens of the decoding sequences.

    Not thread-safe: the engine calls it under its condition.
    """

    def __init__(self, slots: int, max_waiting: int, prefill_tokens: int) -> None:
        self._max_waiting = max_waiting
        self._prefill_tokens = prefill_tokens
        self._free_slots = list(range(slots))
        self._waiting: dict[int, Sequence] = {}
        self._leases: dict[int, Lease] = {}  # Of waiting sequences whose adapters are loaded.
        self._running: dict[int, RunningSequence] = {}

    @property
    def waiting(self) -> list[Sequence]:
        """Sequences without a slot, oldest first."""
        return list(self._waiting.values())

    @property
    def waiting_count(self) -> int:
        """How many sequences wait. Safe from any thread."""
        return len(self._waiting)

    @property
    def running(self) -> list[RunningSequence]:
        """Sequences with a slot, in the order of their admission."""
        return list(self._running.values())

    @property
    def prefilling(self) -> list[RunningSequence]:
        """Running sequences whose prompt is not completely prefilled, in the order of their admission."""
        return [running for running in self._running.values() if running.sequence.phase is Phase.PREFILLING]

    @property
    def decoding(self) -> list[RunningSequence]:
        """Running sequences whose prompt is prefilled, in slot order."""
        decoding = [running for running in self._running.values() if running.sequence.phase is Phase.DECODING]
        return sorted(decoding, key=lambda running: running.seat.slot)

    @property
    def all_sequences(self) -> list[Sequence]:
        """Every sequence, waiting ones first."""
        return [*self._waiting.values(), *(running.sequence for running in self._running.values())]

    @property
    def free_slots(self) -> int:
        """Slots that no sequence holds. Safe from any thread."""
        return len(self._free_slots)

    @property
    def idle(self) -> bool:
        """Whether no sequence runs and none could be admitted."""
        return not self._running and not self._leases

    def check_room(self, in_preparation: int = 0) -> None:
        """Raise OverloadedError if one more sequence could not wait. Counts `in_preparation` others as waiting."""
        waiting = len(self._waiting) + in_preparation
        if waiting >= self._max_waiting:
            raise OverloadedError(
                f"{waiting} requests wait already and the queue holds {self._max_waiting}: retry later",
                waiting=str(waiting),
                max_waiting=str(self._max_waiting),
            )

    def enqueue(self, sequence: Sequence) -> None:
        """Queue `sequence`. Raises OverloadedError if the queue is full."""
        self.check_room()
        self._waiting[sequence.number] = sequence

    def adapters_ready(self, sequence: Sequence, lease: Lease) -> None:
        """Note that a waiting sequence can be admitted with `lease`."""
        self._leases[sequence.number] = lease

    def admit(self) -> list[RunningSequence]:
        """Give the free slots to the oldest sequences whose adapters are loaded; return the admitted ones."""
        ready = [number for number in self._waiting if number in self._leases]
        admitted = []
        for number in ready[: len(self._free_slots)]:
            seat = Seat(heapq.heappop(self._free_slots), self._leases.pop(number))
            running = RunningSequence(self._waiting.pop(number), seat)
            self._running[number] = running
            admitted.append(running)
        return admitted

    def chunks(self) -> list[Chunk]:
        """Share one step's `prefill_tokens` among the prefilling sequences, first come, first served."""
        budget = self._prefill_tokens
        chunks = []
        for running in self.prefilling:
            if not budget:
                break
            chunks.append(Chunk(running, min(running.prefill.remaining, budget)))
            budget -= chunks[-1].tokens
        return chunks

    def expired(self, now: float) -> list[Sequence]:
        """Return sequences that are cancelled, or whose deadline is at or before `now` (`time.monotonic`)."""
        return [sequence for sequence in self.all_sequences if sequence.cancelled or sequence.expired(now)]

    def running_of(self, sequence: Sequence) -> RunningSequence | None:
        """Return the running state of `sequence`, or None if it has no slot."""
        return self._running.get(sequence.number)

    def remove(self, sequence: Sequence) -> Lease | None:
        """Remove `sequence` and free its slot. Return its lease, if it has one: the caller releases it."""
        self._waiting.pop(sequence.number, None)
        running = self._running.pop(sequence.number, None)
        if running is None:
            return self._leases.pop(sequence.number, None)
        heapq.heappush(self._free_slots, running.seat.slot)
        return running.seat.lease

    def next_deadline(self) -> float | None:
        """Return the earliest deadline of all sequences, as a time of `time.monotonic`."""
        deadlines = (sequence.request.deadline for sequence in self.all_sequences)
        return min((deadline for deadline in deadlines if deadline is not None), default=None)
