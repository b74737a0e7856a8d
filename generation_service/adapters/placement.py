"""Which adapter or fusion owns which range of the bank: leased while in use, pinned on request, evicted by LRU."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence, Set
from enum import Enum, auto

from generation_service.adapters.admission import capacity_error
from generation_service.adapters.leases import AdapterKey, Resident, ResidentAdapter, ResidentKey
from generation_service.adapters.ranges import RangeRequest
from generation_service.lora.bank import AdapterBank
from generation_service.lora.weights import AdapterWeights
from infra.contract.errors import CapacityError, NotFoundError

Leased = dict[Resident, float]
"""Residents under lease, each with its weight in the composition."""


class Deferred(Enum):
    """Why a composition cannot be placed now."""

    NOT_READ = auto()
    """A range is not resident and its weights are not on the host."""
    NO_ROOM = auto()
    """The bank has no room until leases of other compositions are released."""


class Placement:
    """The residents of a bank.

    `place` may be called from one thread only, which thereby is the only one that writes to the bank or evicts;
    everything else is safe from any thread. Pinned adapters may hold at most half of the bank's ranks, so that other
    compositions can always be placed.
    """

    def __init__(self, bank: AdapterBank) -> None:
        self._bank = bank
        # Guards: `_residents`, its LRU order, and the lease counts and pins of the residents. Never held while the
        # bank is written to, which takes milliseconds.
        self._lock = threading.Lock()
        self._residents: OrderedDict[ResidentKey, Resident] = OrderedDict()

    def place(self, ranges: Sequence[RangeRequest], path: str) -> Leased | Deferred:
        """Lease all of `ranges`, writing those that are not resident, or else lease none of them.

        `path` is the request's field for the composition, for errors. Called on: placer thread.

        Raises:
            CapacityError: it cannot fit even after evicting everything evictable and waiting for all leases.
            CheckpointError: the bank cannot hold the values.
        """
        if any(request.weights is None for request in self.absent(ranges)):
            return Deferred.NOT_READ
        with self._lock:
            in_use = any(resident.leases for resident in self._residents.values())
        leased = self._lease_all(ranges)
        if leased is not None:
            return leased
        if self._needed(ranges) + self._pinned_by_others(ranges) > self._bank.ranks:
            raise self._too_large(ranges, path)
        # A lease released since `in_use` was read wakes the placer, which then tries again. If nothing was leased then,
        # nothing is now: only this thread creates leases.
        return Deferred.NO_ROOM if in_use else self._lease_compacted(ranges, path)

    def release(self, leased: Mapping[Resident, float]) -> None:
        """Return leases. A resident without leases stays in the bank until its range is needed."""
        with self._lock:
            for resident in leased:
                resident.leases -= 1
                if self._residents.get(resident.key) is resident:
                    self._residents.move_to_end(resident.key)

    def absent(self, ranges: Sequence[RangeRequest]) -> list[RangeRequest]:
        """Return those of `ranges` that are not resident."""
        with self._lock:
            return [request for request in ranges if request.key not in self._residents]

    def pin(self, key: AdapterKey) -> ResidentAdapter:
        """Pin a resident and unpin other revisions of it.

        Raises CapacityError if pinned adapters would hold more than half of the bank.
        """
        with self._lock:
            resident = self._residents[key]
            revisions = self._revisions(key.adapter_id)
            others = sum(r.owned.rank for r in self._residents.values() if r.pinned and r not in revisions)
            if others + resident.owned.rank > self.pin_limit:
                raise CapacityError(
                    f"adapter {key.adapter_id!r} of rank {resident.owned.rank} cannot be kept loaded: other pinned "
                    f"adapters hold {others} ranks, and {self.pin_limit} of the bank's {self._bank.ranks} may be "
                    "pinned, so that others find room: unload some, or start the server with a larger --bank-ranks",
                    rank=str(resident.owned.rank),
                    pinned=str(others),
                    limit=str(self.pin_limit),
                )
            for revision in revisions:
                revision.pinned = revision is resident
            return self._described(resident)

    def unpin(self, adapter_id: str) -> None:
        """Make an adapter evictable again. Raises NotFoundError if it is not resident."""
        with self._lock:
            revisions = self._revisions(adapter_id)
            for resident in revisions:
                resident.pinned = False
        if not revisions:
            raise NotFoundError(
                f"adapter {adapter_id!r} is not loaded; GetModel lists those that are", adapter_id=adapter_id
            )

    @property
    def pin_limit(self) -> int:
        """Ranks that pinned adapters may hold together."""
        return self._bank.ranks // 2

    def pinned_ranks(self, excluding: Set[ResidentKey] = frozenset()) -> int:
        """Return the ranks that pinned adapters hold, those of `excluding` left out."""
        with self._lock:
            return sum(r.owned.rank for r in self._residents.values() if r.pinned and r.key not in excluding)

    def adapters(self) -> list[ResidentAdapter]:
        """Return the resident adapters, least recently used first."""
        with self._lock:
            return [self._described(r) for r in self._residents.values() if isinstance(r.key, AdapterKey)]

    @property
    def leased_ranks(self) -> int:
        """Ranks under lease."""
        with self._lock:
            return sum(resident.owned.rank for resident in self._residents.values() if resident.leases)

    @property
    def ranks(self) -> int:
        """Ranks that residents occupy, leased or not."""
        with self._lock:
            return sum(resident.owned.rank for resident in self._residents.values())

    def _lease_all(self, ranges: Sequence[RangeRequest]) -> Leased | None:
        """Lease what is resident, then write the rest in order. None, with nothing leased, if one finds no room."""
        leased = self._lease_resident(ranges)
        present = {resident.key for resident in leased}
        try:
            for request in ranges:
                if request.key in present:
                    continue
                assert request.weights is not None, "an absent range has weights: `place` checked it"
                resident = self._write(request.key, request.weights)
                if resident is None:
                    self.release(leased)
                    return None
                leased[resident] = request.weight
        except BaseException:
            self.release(leased)
            raise
        return leased

    def _lease_compacted(self, ranges: Sequence[RangeRequest], path: str) -> Leased | Deferred:
        """Evict everything evictable, so that free ranks are as contiguous as can be, and write the largest first."""
        if any(request.weights is None for request in ranges):
            return Deferred.NOT_READ
        self._evict_until(self._bank.ranks)
        ranks = self._ranks(ranges)
        leased = self._lease_all(sorted(ranges, key=lambda request: ranks[request.key], reverse=True))
        if leased is None:
            raise self._too_large(ranges, path)
        return leased

    def _lease_resident(self, ranges: Sequence[RangeRequest]) -> Leased:
        leased: Leased = {}
        with self._lock:
            for request in ranges:
                resident = self._residents.get(request.key)
                if resident is not None:
                    resident.leases += 1
                    self._residents.move_to_end(request.key)
                    leased[resident] = request.weight
        return leased

    def _write(self, key: ResidentKey, weights: AdapterWeights) -> Resident | None:
        """Return a new resident with one lease; None if no range is free and none can be evicted."""
        if not self._evict_until(weights.rank):
            return None
        owned = self._bank.acquire(weights.rank)
        try:
            self._bank.write(owned, weights)
        except BaseException:
            self._bank.release(owned)
            raise
        resident = Resident(key, owned, leases=1)
        with self._lock:
            self._residents[key] = resident
        return resident

    def _evict_until(self, rank: int) -> bool:
        """Evict least recently used residents until `rank` contiguous ranks are free; False if that cannot be."""
        while self._bank.largest_free < rank:
            with self._lock:
                victim = next((resident for resident in self._residents.values() if resident.evictable), None)
                if victim is None:
                    return False
                del self._residents[victim.key]
            self._bank.release(victim.owned)
        return True

    def _needed(self, ranges: Sequence[RangeRequest]) -> int:
        return sum(self._ranks(ranges).values())

    def _ranks(self, ranges: Sequence[RangeRequest]) -> dict[ResidentKey, int]:
        with self._lock:
            resident_ranks = {resident.key: resident.owned.rank for resident in self._residents.values()}
        read_ranks = {request.key: request.weights.rank for request in ranges if request.weights is not None}
        known = read_ranks | resident_ranks
        return {request.key: known[request.key] for request in ranges}

    def _pinned_by_others(self, ranges: Sequence[RangeRequest]) -> int:
        return self.pinned_ranks({request.key for request in ranges})

    def _too_large(self, ranges: Sequence[RangeRequest], path: str) -> CapacityError:
        needed, pinned = self._needed(ranges), self._pinned_by_others(ranges)
        fragmented = needed + pinned <= self._bank.ranks
        detail = ", with no room in one piece between those that are pinned" if fragmented else ""
        return capacity_error(needed, self._bank.ranks, pinned, path, detail)

    def _revisions(self, adapter_id: str) -> list[Resident]:
        return [
            resident
            for resident in self._residents.values()
            if isinstance(resident.key, AdapterKey) and resident.key.adapter_id == adapter_id
        ]

    def _described(self, resident: Resident) -> ResidentAdapter:
        assert isinstance(resident.key, AdapterKey)
        return ResidentAdapter(
            adapter_id=resident.key.adapter_id,
            revision=resident.key.revision,
            rank=resident.owned.rank,
            byte_size=resident.owned.rank * self._bank.bytes_per_rank,
            pinned=resident.pinned,
        )
