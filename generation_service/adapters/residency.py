"""A composition on its way into the bank: checked, read, placed, and handed over as a lease."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress

from generation_service.adapters.admission import checked, named
from generation_service.adapters.host_cache import WeightStore
from generation_service.adapters.leases import (
    AdapterKey,
    BankLease,
    Outcome,
    Ready,
    Resident,
    ResidentAdapter,
)
from generation_service.adapters.placement import NotYet, Placement
from generation_service.adapters.source import AdapterSource
from generation_service.adapters.tickets import Ticket
from generation_service.adapters.wanted import wanted_by
from generation_service.lora.bank import AdapterBank
from infra.contract.composition import Base, Composition, Fusion, Mixture, WeightedAdapter
from infra.contract.errors import LoraRetrieverError, UnavailableError

READ_AHEAD = 16


class Residency:
    """Loads what compositions ask for and leases it to them.

    Reader threads resolve and read; one placer thread alone changes who is in the bank, first come, first served, in
    the order in which compositions are ready to be placed. A composition gets all its ranges or none, so two can never
    wait for each other; one that does not fit waits, and all behind it, until running sequences give theirs back. No
    more than READ_AHEAD of those that wait hold weights on the host.
    """

    def __init__(self, bank: AdapterBank, store: WeightStore, readers: int = 4) -> None:
        self._store = store
        self._bank_ranks = bank.ranks
        self._placement = Placement(bank)
        self._lock = threading.Lock()
        self._unread: OrderedDict[Ticket, None] = OrderedDict()
        self._ahead = 0
        self._closed = False
        self._blocked: deque[Ticket] = deque()
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="adapter-reader")
        self._placer = ThreadPoolExecutor(1, thread_name_prefix="adapter-placer")

    def check(self, composition: Composition) -> Composition:
        """Return `composition` with its adapters' revisions named, once all that configs tell of it is found good.

        Reads no weights; what it looked up is kept by revision. Blocks on disk or network; from any thread. Raises,
        with the field and the limit in the error's metadata, NotFoundError, CheckpointError, BaseModelMismatchError,
        CapacityError for a rank or a composition beyond the bank, FailedPreconditionError for adapters that the
        fusion's method cannot combine.
        """
        return composition if isinstance(composition, Base) else self._checked(composition)[0]

    def request(self, composition: Composition, ready: Ready) -> Ticket:
        """Call `ready` once with the composition's lease, or with the error that it ends in; from any thread.

        Not at all once the ticket is cancelled.
        """
        ticket = Ticket(ready, self._forget, composition)
        if isinstance(composition, Base):
            ticket.tell(BankLease({}, (), self._release))
        elif self._all_resident(composition, ticket):
            self._send(self._placer, self._place, ticket)
        else:
            self._read_soon(ticket)
        return ticket

    def pin(self, adapter_id: str, revision: str = "") -> Future[ResidentAdapter]:
        """Load an adapter and keep it until `unpin`; an older revision of it is no longer kept.

        Beside what loading raises, CapacityError when pinned adapters would hold more than half of the bank.
        """
        future: Future[ResidentAdapter] = Future()
        future.set_running_or_notify_cancel()

        def loaded(outcome: Outcome) -> None:
            if isinstance(outcome, Exception):
                future.set_exception(_of_one(outcome))
                return
            (share,) = outcome.applied
            try:
                future.set_result(self._placement.pin(AdapterKey(share.adapter_id, share.revision)))
            except LoraRetrieverError as error:
                future.set_exception(error)
            finally:
                outcome.release()

        self.request(Mixture((WeightedAdapter(adapter_id, 1.0, revision),)), loaded)
        return future

    def unpin(self, adapter_id: str) -> None:
        """Let an adapter leave when its place is needed. Raises NotFoundError when it is not in the bank."""
        self._placement.unpin(adapter_id)
        self._wake()

    def residents(self) -> list[ResidentAdapter]:
        """Return the adapters in the bank, least recently used first."""
        return self._placement.adapters()

    @property
    def leased_ranks(self) -> int:
        """Ranks that leases hold in the bank."""
        return self._placement.leased_ranks

    @property
    def ranks(self) -> int:
        """Ranks that adapters and fusions take in the bank, in use or not."""
        return self._placement.ranks

    def close(self) -> None:
        """End the threads; compositions that still wait end in UnavailableError."""
        with self._lock:
            self._closed = True
        self._readers.shutdown(wait=True, cancel_futures=True)
        self._placer.shutdown(wait=True)
        with self._lock:
            waiting = [*self._unread, *self._blocked]
            self._unread.clear()
            self._blocked.clear()
        for ticket in waiting:
            self._end(ticket, _stopping())

    def _checked(self, composition: Mixture | Fusion) -> tuple[Mixture | Fusion, list[AdapterSource]]:
        return checked(composition, self._store, self._bank_ranks, self._placement.pinned_ranks)

    def _all_resident(self, composition: Mixture | Fusion, ticket: Ticket) -> bool:
        """Fill the ticket and return True when nothing has to be looked up or read: a slow catalogue harms no such."""
        sources = self._store.known(composition.adapters)
        if sources is None:
            return False
        self._fill(ticket, composition, sources)
        return not self._placement.absent(ticket.wanted)

    def _fill(self, ticket: Ticket, composition: Mixture | Fusion, sources: Sequence[AdapterSource]) -> None:
        ticket.applied = named(composition.adapters, sources)
        ticket.wanted = wanted_by(composition, list(zip(ticket.applied, sources, strict=True)), self._store)

    def _read_soon(self, ticket: Ticket) -> None:
        with self._lock:
            gone = self._closed or ticket.cancelled
            if not gone:
                self._unread[ticket] = None
        if gone:
            self._end(ticket, _stopping())
        else:
            self._read_ahead()

    def _read_ahead(self) -> None:
        """Start to read for those who came first, as many as may hold weights."""
        starting = []
        with self._lock:
            while self._unread and self._ahead < READ_AHEAD and not self._closed:
                ticket, _ = self._unread.popitem(last=False)
                ticket.ahead = True
                self._ahead += 1
                starting.append(ticket)
        for ticket in starting:
            self._send(self._readers, self._read, ticket)

    def _read(self, ticket: Ticket) -> None:
        """Read what `ticket` needs and the bank does not hold; all that it needs when it comes here again."""
        assert not isinstance(ticket.composition, Base)
        if ticket.cancelled:
            self._end(ticket, None)
            return
        try:
            ticket.composition, sources = self._checked(ticket.composition)
            self._fill(ticket, ticket.composition, sources)
            for wanted in ticket.wanted if ticket.again else self._placement.absent(ticket.wanted):
                wanted.weights = wanted.load()
        except Exception as error:
            self._end(ticket, error)
            return
        self._send(self._placer, self._place, ticket)

    def _place(self, ticket: Ticket) -> None:
        if ticket.again:
            self._blocked.appendleft(ticket)
        else:
            self._blocked.append(ticket)
        self._drain()

    def _drain(self) -> None:
        """Lease to those who wait, in order, until one does not fit. On the placer's thread."""
        self._drop_cancelled()
        while self._blocked:
            ticket = self._blocked[0]
            outcome = self._outcome(ticket)
            if outcome is NotYet.NO_ROOM:
                return
            self._blocked.popleft()
            if outcome is NotYet.UNREAD:
                self._read_again(ticket)
            else:
                self._end(ticket, outcome)

    def _drop_cancelled(self) -> None:
        for ticket in [ticket for ticket in self._blocked if ticket.cancelled]:
            self._blocked.remove(ticket)
            self._end(ticket, None)

    def _outcome(self, ticket: Ticket) -> Outcome | NotYet:
        try:
            placed = self._placement.place(ticket.wanted)
        except Exception as error:
            return error
        return placed if isinstance(placed, NotYet) else BankLease(placed, ticket.applied, self._release)

    def _read_again(self, ticket: Ticket) -> None:
        """Read what left the bank since the ticket was filled; it has the first place when it comes back."""
        ticket.again = True
        if ticket.ahead:
            self._send(self._readers, self._read, ticket)
        else:
            self._read_soon(ticket)

    def _end(self, ticket: Ticket, outcome: Outcome | None) -> None:
        """Let go of what a ticket holds, and hand over what it came to."""
        ticket.wanted = []
        with self._lock:
            held = ticket.ahead
            self._ahead -= held
            ticket.ahead = False
        if outcome is not None:
            ticket.tell(outcome)
        if held:
            self._read_ahead()

    def _forget(self, ticket: Ticket) -> None:
        """Let a cancelled ticket go from where it waits; a reader that has it lets it go when it comes to it."""
        with self._lock:
            unread = ticket in self._unread
            self._unread.pop(ticket, None)
        if unread:
            self._end(ticket, None)
        else:
            self._wake()

    def _release(self, held: Mapping[Resident, float]) -> None:
        self._placement.release(held)
        self._wake()

    def _wake(self) -> None:
        """Let the placer look again at those who wait."""
        if self._blocked:
            with suppress(RuntimeError):  # It ended: `close` answers those who wait.
                self._placer.submit(self._drain)

    def _send(self, threads: Executor, work: Callable[[Ticket], None], ticket: Ticket) -> None:
        """Let `threads` do `work` for a ticket; one that they no longer take, or drop, ends in UnavailableError."""
        try:
            done = threads.submit(work, ticket)
        except RuntimeError:
            self._end(ticket, _stopping())
            return
        done.add_done_callback(lambda future: self._end(ticket, _stopping()) if future.cancelled() else None)


def _of_one(error: Exception) -> Exception:
    """Return an error about the one adapter of a pin, its field as a request for one adapter has it."""
    if isinstance(error, LoraRetrieverError) and "field" in error.metadata:
        error.metadata = {**error.metadata, "field": error.metadata["field"].rpartition(".")[2]}
    return error


def _stopping() -> UnavailableError:
    return UnavailableError("the server is stopping: retry")
