"""Who is in the adapter bank: loaded when asked for, leased while used, reclaimed least recently used."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace

from generation_service.adapters.admission import (
    adapters_field,
    beyond_bank,
    check_composition,
    check_rank,
    naming,
)
from generation_service.adapters.bank import AdapterBank
from generation_service.adapters.leases import (
    AdapterKey,
    BankLease,
    Outcome,
    Ready,
    Resident,
    ResidentAdapter,
    ResidentKey,
)
from generation_service.adapters.sources import AdapterSource
from generation_service.adapters.store import WeightStore
from generation_service.adapters.wanted import Wanted, wanted_by
from infra.contract.composition import Base, Composition, Fusion, Mixture, WeightedAdapter
from infra.contract.errors import CapacityError, NotFoundError, UnavailableError
from infra.runtime.logs import get_logger

log = get_logger(__name__)


@dataclass(eq=False)
class Ticket:
    """A composition on its way into the bank."""

    ready: Ready
    wanted: list[Wanted] = field(default_factory=list)
    applied: tuple[WeightedAdapter, ...] = ()
    cancelled: bool = False

    def cancel(self) -> None:
        """Forget it, if it is not ready yet; a lease that comes all the same is its receiver's to release."""
        self.cancelled = True


class Residency:
    """The tenants of an adapter bank.

    Reader threads resolve and read; one placer thread alone changes who is in the bank, in the order in which
    compositions are ready to be placed. A composition gets all its ranges or none, so two can never wait for each
    other; one that does not fit waits until running sequences give theirs back.
    """

    def __init__(self, bank: AdapterBank, store: WeightStore, readers: int = 4) -> None:
        self._bank = bank
        self._store = store
        self._lock = threading.Lock()
        self._residents: OrderedDict[ResidentKey, Resident] = OrderedDict()
        self._blocked: deque[Ticket] = deque()
        self._closed = False
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="adapter-reader")
        self._placer = ThreadPoolExecutor(1, thread_name_prefix="adapter-placer")

    def check(self, composition: Composition) -> Composition:
        """Return `composition` with its adapters' revisions named, once all that configs tell of it is found good.

        Reads no weights; what it looked up is kept by revision. Blocks on disk or network; from any thread. Raises,
        with the field and the limit in the error's metadata, NotFoundError, CheckpointError, BaseModelMismatchError,
        CapacityError for a rank or a composition beyond the bank, FailedPreconditionError for adapters that the
        fusion's method cannot combine.
        """
        if isinstance(composition, Base):
            return composition
        path = adapters_field(composition)
        shares, configs = [], []
        for index, share in enumerate(composition.adapters):
            with naming(f"{path}[{index}]"):
                source = self._store.resolve(share.adapter_id, share.revision)
                config = self._store.config(source)
                check_rank(share.adapter_id, config, self._bank.ranks)
            shares.append(replace(share, revision=source.revision))
            configs.append(config)
        alone = isinstance(composition, Mixture)
        own = {AdapterKey(share.adapter_id, share.revision) for share in shares if alone}
        check_composition(composition, configs, self._bank.ranks, self._pinned_beside(own))
        return replace(composition, adapters=tuple(shares))

    def request(self, composition: Composition, ready: Ready) -> Ticket:
        """Call `ready` once with the composition's lease, or with the error that it ends in; from any thread."""
        ticket = Ticket(ready)
        if isinstance(composition, Base):
            ready(BankLease({}, (), self._release))
        elif self._all_resident(composition, ticket):
            self._placer.submit(self._place, ticket)
        else:
            reading = self._readers.submit(self._read, composition, ticket)
            reading.add_done_callback(lambda done: ready(_stopping()) if done.cancelled() else None)
        return ticket

    def pin(self, adapter_id: str, revision: str = "") -> Future[ResidentAdapter]:
        """Load an adapter and keep it until `unpin`; an older revision of it is no longer kept."""
        future: Future[ResidentAdapter] = Future()
        future.set_running_or_notify_cancel()

        def pinned(outcome: Outcome) -> None:
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
                return
            (share,) = outcome.applied
            key = AdapterKey(share.adapter_id, share.revision)
            with self._lock:
                for resident in self._revisions(adapter_id):
                    resident.pinned = resident.key == key
                described = self._described(self._residents[key])
            outcome.release()
            future.set_result(described)

        self.request(Mixture((WeightedAdapter(adapter_id, 1.0, revision),)), pinned)
        return future

    def unpin(self, adapter_id: str) -> None:
        """Let an adapter leave when its place is needed. Raises NotFoundError when it is not in the bank."""
        with self._lock:
            revisions = self._revisions(adapter_id)
            for resident in revisions:
                resident.pinned = False
        if not revisions:
            raise NotFoundError(f"adapter {adapter_id!r} is not loaded; GetModel lists those that are")
        self._wake()

    def residents(self) -> list[ResidentAdapter]:
        """Return the adapters in the bank, least recently used first."""
        with self._lock:
            return [self._described(r) for r in self._residents.values() if isinstance(r.key, AdapterKey)]

    @property
    def leased_ranks(self) -> int:
        """Ranks that leases hold in the bank."""
        with self._lock:
            return sum(resident.owned.rank for resident in self._residents.values() if resident.leases)

    @property
    def ranks(self) -> int:
        """Ranks that adapters and fusions take in the bank, in use or not."""
        with self._lock:
            return sum(resident.owned.rank for resident in self._residents.values())

    def close(self) -> None:
        """End the threads; compositions that still wait end in UnavailableError."""
        self._closed = True
        self._readers.shutdown(wait=True, cancel_futures=True)
        self._placer.shutdown(wait=True)
        while self._blocked:
            self._blocked.popleft().ready(_stopping())

    def _read(self, composition: Mixture | Fusion, ticket: Ticket) -> None:
        try:
            if ticket.cancelled:
                return
            sources = [self._store.resolve(share.adapter_id, share.revision) for share in composition.adapters]
            self._fill(ticket, composition, sources)
            for wanted in self._absent(ticket):
                wanted.weights = wanted.load()
            self._placer.submit(self._place, ticket)
        except Exception as error:
            _tell(ticket, error)

    def _all_resident(self, composition: Mixture | Fusion, ticket: Ticket) -> bool:
        """Fill the ticket and return True when nothing has to be looked up or read: a slow catalogue harms no such."""
        sources = self._store.known(composition.adapters)
        if sources is None:
            return False
        self._fill(ticket, composition, sources)
        return not self._absent(ticket)

    def _fill(self, ticket: Ticket, composition: Mixture | Fusion, sources: Sequence[AdapterSource]) -> None:
        ticket.applied = tuple(
            WeightedAdapter(share.adapter_id, share.weight, source.revision)
            for share, source in zip(composition.adapters, sources, strict=True)
        )
        ticket.wanted = wanted_by(composition, list(zip(ticket.applied, sources, strict=True)), self._store)

    def _absent(self, ticket: Ticket) -> list[Wanted]:
        with self._lock:
            return [wanted for wanted in ticket.wanted if wanted.key not in self._residents]

    def _place(self, ticket: Ticket) -> None:
        self._blocked.append(ticket)
        self._drain()

    def _drain(self) -> None:
        """Lease to those who wait, in order, until one does not fit. On the placer's thread."""
        while self._blocked:
            ticket = self._blocked[0]
            outcome = None if ticket.cancelled else self._outcome(ticket)
            if outcome is None and not ticket.cancelled:
                return
            self._blocked.popleft()
            if outcome is not None:
                _tell(ticket, outcome)

    def _outcome(self, ticket: Ticket) -> Outcome | None:
        try:
            return self._lease(ticket)
        except Exception as error:
            return error

    def _lease(self, ticket: Ticket) -> BankLease | None:
        """Return the lease of all that `ticket` wants, or None when leases of others stand in its way.

        Raises CapacityError when it cannot fit whoever leaves.
        """
        with self._lock:
            others = any(resident.leases for resident in self._residents.values())
        held = self._hold(ticket.wanted)
        if held is None and self._never_fits(ticket):
            raise self._too_large(ticket)
        if held is None and not others:
            held = self._hold(self._alone(ticket))
            if held is None:
                raise self._too_large(ticket)
        return None if held is None else BankLease(held, ticket.applied, self._release)

    def _hold(self, wanted: Sequence[Wanted]) -> dict[Resident, float] | None:
        """Return all that is wanted, leased in this order; None, and nothing leased, when one finds no room."""
        held: dict[Resident, float] = {}
        try:
            for one in wanted:
                resident = self._leased(one) or self._load(one)
                if resident is None:
                    self._unlease(held)
                    return None
                held[resident] = one.weight
        except Exception:
            self._unlease(held)
            raise
        return held

    def _alone(self, ticket: Ticket) -> list[Wanted]:
        """Let all leave who may, so that free ranks lie in as few pieces as can be; return the largest wanted first."""
        self._make_room(self._bank.ranks)
        for wanted in self._absent(ticket):
            wanted.weights = wanted.weights or wanted.load()
        ranks = self._ranks(ticket)
        return sorted(ticket.wanted, key=lambda wanted: ranks[wanted.key], reverse=True)

    def _leased(self, wanted: Wanted) -> Resident | None:
        with self._lock:
            resident = self._residents.get(wanted.key)
            if resident is not None:
                resident.leases += 1
                self._residents.move_to_end(wanted.key)
            return resident

    def _load(self, wanted: Wanted) -> Resident | None:
        """Return a new resident, leased; None when no range is free and none can be reclaimed."""
        if wanted.weights is None:
            wanted.weights = wanted.load()
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

    def _never_fits(self, ticket: Ticket) -> bool:
        return self._need(ticket) + self._pinned_ranks(ticket) > self._bank.ranks

    def _need(self, ticket: Ticket) -> int:
        return sum(self._ranks(ticket).values())

    def _ranks(self, ticket: Ticket) -> dict[ResidentKey, int]:
        """Return the rank of each that `ticket` wants; 0 where neither bank nor ticket has its weights yet."""
        with self._lock:
            there = {resident.key: resident.owned.rank for resident in self._residents.values()}
        absent = {wanted.key: wanted.weights.rank for wanted in ticket.wanted if wanted.weights is not None}
        return {wanted.key: there.get(wanted.key, absent.get(wanted.key, 0)) for wanted in ticket.wanted}

    def _pinned_ranks(self, ticket: Ticket) -> int:
        """Return the ranks that pinned adapters hold, those of `ticket` left out."""
        return self._pinned_beside({wanted.key for wanted in ticket.wanted})

    def _pinned_beside(self, own: Set[ResidentKey]) -> int:
        with self._lock:
            return sum(r.owned.rank for r in self._residents.values() if r.pinned and r.key not in own)

    def _too_large(self, ticket: Ticket) -> CapacityError:
        need, pinned = self._need(ticket), self._pinned_ranks(ticket)
        where = "" if need + pinned > self._bank.ranks else ", with no room in one piece between those that are pinned"
        return beyond_bank(need, self._bank.ranks, pinned, where)

    def _unlease(self, residents: Mapping[Resident, float]) -> None:
        with self._lock:
            for resident in residents:
                resident.leases -= 1
                if self._residents.get(resident.key) is resident:
                    self._residents.move_to_end(resident.key)

    def _release(self, residents: Mapping[Resident, float]) -> None:
        self._unlease(residents)
        self._wake()

    def _wake(self) -> None:
        """Let the placer look again at those who wait."""
        if self._blocked and not self._closed:
            with suppress(RuntimeError):
                self._placer.submit(self._drain)

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


def _tell(ticket: Ticket, outcome: Outcome) -> None:
    """Hand over what a ticket came to; a receiver that fails holds up no other."""
    try:
        ticket.ready(outcome)
    except Exception:
        log.exception("composition_not_received")
        if isinstance(outcome, BankLease):
            outcome.release()


def _stopping() -> UnavailableError:
    return UnavailableError("the server is stopping: retry")
