"""Allocation of contiguous rank ranges: which adapter owns which columns of the bank."""

from __future__ import annotations

import threading
from bisect import bisect
from dataclasses import dataclass
from itertools import count

from infra.contract.errors import CapacityError


@dataclass(frozen=True, order=True)
class RankRange:
    """The columns [start, start + rank) of the bank, owned by one adapter.

    `epoch` is unique to each acquisition, so a stale range never compares equal to the one that reuses its columns.
    """

    start: int
    rank: int
    epoch: int

    @property
    def stop(self) -> int:
        """One past the last column."""
        return self.start + self.rank


@dataclass(frozen=True)
class _Gap:
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


class RankAllocator:
    """A first-fit allocator over `ranks` columns that merges adjacent gaps on release. Thread-safe."""

    def __init__(self, ranks: int) -> None:
        if ranks < 1:
            raise ValueError(f"a bank needs at least one rank, got {ranks}")
        self.ranks = ranks
        self._gaps = [_Gap(0, ranks)]
        self._owned: set[RankRange] = set()
        self._epochs = count(1)
        self._lock = threading.Lock()  # Guards: _gaps, _owned, _epochs.

    def acquire(self, rank: int) -> RankRange:
        """Return `rank` contiguous free columns. Rank 0, an empty adapter, takes no columns.

        Raises CapacityError if no gap is large enough.
        """
        if rank < 0:
            raise ValueError(f"a rank cannot be negative, got {rank}")
        with self._lock:
            start = self._take(rank) if rank else 0
            acquired = RankRange(start, rank, next(self._epochs))
            self._owned.add(acquired)
            return acquired

    def release(self, owned: RankRange) -> None:
        """Free the columns of `owned`. Raises ValueError if it is not owned here, or was released before."""
        with self._lock:
            self._check(owned)
            self._owned.remove(owned)
            if owned.rank:
                self._give(_Gap(owned.start, owned.stop))

    def check(self, owned: RankRange) -> None:
        """Raise ValueError if `owned` is not currently acquired."""
        with self._lock:
            self._check(owned)

    @property
    def free(self) -> int:
        """Columns that no adapter owns."""
        with self._lock:
            return sum(gap.size for gap in self._gaps)

    @property
    def largest_free(self) -> int:
        """The largest rank that `acquire` would grant now."""
        with self._lock:
            return max((gap.size for gap in self._gaps), default=0)

    def _check(self, owned: RankRange) -> None:
        if owned not in self._owned:
            raise ValueError(f"{owned} is not held in this bank: it was released before, or belongs to another bank")

    def _take(self, rank: int) -> int:
        for index, gap in enumerate(self._gaps):
            if gap.size >= rank:
                self._gaps[index : index + 1] = [_Gap(gap.start + rank, gap.stop)] if gap.size > rank else []
                return gap.start
        free = sum(gap.size for gap in self._gaps)
        largest = max((gap.size for gap in self._gaps), default=0)
        raise CapacityError(
            f"an adapter of rank {rank} does not fit into the adapter bank: {free} of its {self.ranks} ranks are free, "
            f"{largest} of them contiguous: release adapters, or start the server with a larger bank",
            rank=str(rank),
            bank_ranks=str(self.ranks),
            free_ranks=str(free),
        )

    def _give(self, gap: _Gap) -> None:
        index = bisect(self._gaps, gap.start, key=lambda other: other.start)
        before, after = self._gaps[:index], self._gaps[index:]
        if before and before[-1].stop == gap.start:
            gap = _Gap(before.pop().start, gap.stop)
        if after and after[0].start == gap.stop:
            gap = _Gap(gap.start, after.pop(0).stop)
        self._gaps = [*before, gap, *after]
