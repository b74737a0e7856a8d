"""Contiguous ranges of rank columns: who owns which part of the adapter bank."""

from __future__ import annotations

import threading
from bisect import bisect
from dataclasses import dataclass
from itertools import count

from infra.contract.errors import CapacityError


@dataclass(frozen=True, order=True)
class RankRange:
    """The columns [start, start + rank) of the bank, held by one owner.

    `ticket` differs for every acquisition, so that a range kept after its release is never mistaken for its successor.
    """

    start: int
    rank: int
    ticket: int

    @property
    def stop(self) -> int:
        """One past the last column."""
        return self.start + self.rank


@dataclass(frozen=True)
class _Gap:
    start: int
    stop: int


class RankAllocator:
    """First fit over `ranks` columns; neighbouring gaps are joined when a range comes back. Safe across threads."""

    def __init__(self, ranks: int) -> None:
        if ranks < 1:
            raise ValueError(f"a bank needs at least one rank, got {ranks}")
        self.ranks = ranks
        self._gaps = [_Gap(0, ranks)]
        self._owned: set[RankRange] = set()
        self._tickets = count(1)
        self._lock = threading.Lock()

    def acquire(self, rank: int) -> RankRange:
        """Return `rank` contiguous columns that no one else owns. Rank 0 (an empty adapter) takes no room.

        Raises CapacityError naming the need and the limit when no gap is that large.
        """
        if rank < 0:
            raise ValueError(f"a rank cannot be negative, got {rank}")
        with self._lock:
            start = self._take(rank) if rank else 0
            owned = RankRange(start, rank, next(self._tickets))
            self._owned.add(owned)
            return owned

    def release(self, owned: RankRange) -> None:
        """Give `owned` back. Raises ValueError when it is not held: released before, or of another bank."""
        with self._lock:
            self._check(owned)
            self._owned.remove(owned)
            if owned.rank:
                self._give(_Gap(owned.start, owned.stop))

    def check(self, owned: RankRange) -> None:
        """Raise ValueError when `owned` is not held."""
        with self._lock:
            self._check(owned)

    @property
    def free(self) -> int:
        """Columns that no one owns."""
        with self._lock:
            return sum(gap.stop - gap.start for gap in self._gaps)

    @property
    def largest_free(self) -> int:
        """The largest rank that `acquire` would grant now."""
        with self._lock:
            return max((gap.stop - gap.start for gap in self._gaps), default=0)

    def _check(self, owned: RankRange) -> None:
        if owned not in self._owned:
            raise ValueError(f"{owned} is not held in this bank: it was released before, or belongs to another bank")

    def _take(self, rank: int) -> int:
        for place, gap in enumerate(self._gaps):
            if gap.stop - gap.start >= rank:
                self._gaps[place : place + 1] = (
                    [_Gap(gap.start + rank, gap.stop)] if gap.stop - gap.start > rank else []
                )
                return gap.start
        free = sum(gap.stop - gap.start for gap in self._gaps)
        largest = max((gap.stop - gap.start for gap in self._gaps), default=0)
        held = f"holds {self.ranks} in all, {free} of them free, {largest} in one piece"
        raise CapacityError(
            f"an adapter of rank {rank} finds no room in the adapter bank, which {held}: "
            "release adapters, or start the server with a larger bank",
            rank=str(rank),
            bank_ranks=str(self.ranks),
            free_ranks=str(free),
        )

    def _give(self, gap: _Gap) -> None:
        place = bisect(self._gaps, gap.start, key=lambda other: other.start)
        before, after = self._gaps[:place], self._gaps[place:]
        if before and before[-1].stop == gap.start:
            gap = _Gap(before.pop().start, gap.stop)
        if after and after[0].start == gap.stop:
            gap = _Gap(gap.start, after.pop(0).stop)
        self._gaps = [*before, gap, *after]
