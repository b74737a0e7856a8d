"""Who owns which range of the bank: leased while in use, pinned when asked to, reclaimed least recently used."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence, Set
from enum import Enum, auto

from generation_service.adapters.admission import beyond_bank
from generation_service.adapters.leases import AdapterKey, Resident, ResidentAdapter, ResidentKey
from generation_service.adapters.wanted import Wanted
from generation_service.lora.bank import AdapterBank
from infra.contract.errors import CapacityError, NotFoundError

Held = dict[Resident, float]
"""Residents under lease, each with its weight."""


class NotYet(Enum):
    """Why a composition cannot be placed now."""

    UNREAD = auto()
    """The weights of something that has to be written are not at hand."""
    NO_ROOM = auto()
    """Leases of others stand in its way."""


class Placement:
    """The residents of a bank. `place` is for one thread alone; everything else is safe from any.

    Pinned adapters may hold half of the bank's ranks, so that whatever is pinned, others find a place.
    """

    def __init__(self, bank: AdapterBank) -> None:
        self._bank = bank
        self._lock = threading.Lock()
        self._residents: OrderedDict[ResidentKey, Resident] = OrderedDict()

    def place(self, wanted: Sequence[Wanted]) -> Held | NotYet:
        """Return all that is wanted, under lease, or else nothing of it; writes what is absent.

        Raises CapacityError for what does not fit whoever leaves, CheckpointError for values the bank cannot hold.
        """
        if any(one.weights is None for one in self.absent(wanted)):
            return NotYet.UNREAD
        with self._lock:
            in_use = any(resident.leases for resident in self._residents.values())
        held = self._hold(wanted)
        if held is not None:
            return held
        if self._need(wanted) + self._pinned_beside(wanted) > self._bank.ranks:
            raise self._too_large(wanted)
        return NotYet.NO_ROOM if in_use else self._hold_alone(wanted)

    def release(self, held: Mapping[Resident, float]) -> None:
        """Give leases back. A resident of no lease stays until its place is needed."""
        with self._lock:
            for resident in held:
                resident.leases -= 1
                if self._residents.get(resident.key) is resident:
                    self._residents.move_to_end(resident.key)

    def absent(self, wanted: Sequence[Wanted]) -> list[Wanted]:
        """Return those of `wanted` that are not in the bank."""
        with self._lock:
            return [one for one in wanted if one.key not in self._residents]

    def pin(self, key: AdapterKey) -> ResidentAdapter:
        """Keep a resident, in place of other revisions of it. Raises CapacityError when pinned ones would hold more
        than half of the bank.
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
        """Let an adapter leave when its place is needed. Raises NotFoundError when it is not in the bank."""
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

    def pinned_ranks(self, beside: Set[ResidentKey] = frozenset()) -> int:
        """Return the ranks that pinned adapters hold, those of `beside` left out."""
        with self._lock:
            return sum(r.owned.rank for r in self._residents.values() if r.pinned and r.key not in beside)

    def adapters(self) -> list[ResidentAdapter]:
        """Return the adapters in the bank, least recently used first."""
        with self._lock:
            return [self._described(r) for r in self._residents.values() if isinstance(r.key, AdapterKey)]

    @property
    def leased_ranks(self) -> int:
        """Ranks that leases hold."""
        with self._lock:
            return sum(resident.owned.rank for resident in self._residents.values() if resident.leases)

    @property
    def ranks(self) -> int:
        """Ranks that adapters and fusions take, in use or not."""
        with self._lock:
            return sum(resident.owned.rank for resident in self._residents.values())

    def _hold(self, wanted: Sequence[Wanted]) -> Held | None:
        """Lease what is there, then write what is not, in order; None, and nothing leased, when one finds no room."""
        held = self._lease_present(wanted)
        present = {resident.key for resident in held}
        try:
            for one in wanted:
                if one.key in present:
                    continue
                resident = self._write(one)
                if resident is None:
                    self.release(held)
                    return None
                held[resident] = one.weight
        except BaseException:
            self.release(held)
            raise
        return held

    def _hold_alone(self, wanted: Sequence[Wanted]) -> Held | NotYet:
        """Let all leave who may, so that free ranks lie in as few pieces as can be, and write the largest first."""
        if any(one.weights is None for one in wanted):
            return NotYet.UNREAD
        self._make_room(self._bank.ranks)
        ranks = self._ranks(wanted)
        held = self._hold(sorted(wanted, key=lambda one: ranks[one.key], reverse=True))
        if held is None:
            raise self._too_large(wanted)
        return held

    def _lease_present(self, wanted: Sequence[Wanted]) -> Held:
        held: Held = {}
        with self._lock:
            for one in wanted:
                resident = self._residents.get(one.key)
                if resident is not None:
                    resident.leases += 1
                    self._residents.move_to_end(one.key)
                    held[resident] = one.weight
        return held

    def _write(self, wanted: Wanted) -> Resident | None:
        """Return a new resident, leased; None when no range is free and none can be reclaimed."""
        assert wanted.weights is not None
        if not self._make_room(wanted.weights.rank):
            return None
        owned = self._bank.acquire(wanted.weights.rank)
        try:
            self._bank.write(owned, wanted.weights)
        except BaseException:
            self._bank.release(owned)
            raise
        resident = Resident(wanted.key, owned, leases=1)
        with self._lock:
            self._residents[wanted.key] = resident
        return resident

    def _make_room(self, rank: int) -> bool:
        while self._bank.largest_free < rank:
            with self._lock:
                victim = next((resident for resident in self._residents.values() if resident.idle), None)
                if victim is None:
                    return False
                del self._residents[victim.key]
            self._bank.release(victim.owned)
        return True

    def _need(self, wanted: Sequence[Wanted]) -> int:
        return sum(self._ranks(wanted).values())

    def _ranks(self, wanted: Sequence[Wanted]) -> dict[ResidentKey, int]:
        with self._lock:
            there = {resident.key: resident.owned.rank for resident in self._residents.values()}
        read = {one.key: one.weights.rank for one in wanted if one.weights is not None}
        return {one.key: there[one.key] if one.key in there else read[one.key] for one in wanted}

    def _pinned_beside(self, wanted: Sequence[Wanted]) -> int:
        return self.pinned_ranks({one.key for one in wanted})

    def _too_large(self, wanted: Sequence[Wanted]) -> CapacityError:
        need, pinned = self._need(wanted), self._pinned_beside(wanted)
        where = "" if need + pinned > self._bank.ranks else ", with no room in one piece between those that are pinned"
        return beyond_bank(need, self._bank.ranks, pinned, where)

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
