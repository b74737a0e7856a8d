"""Brings compositions into the adapter bank: each is queued, read, placed, and handed over as a lease."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Set
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress

from generation_service.adapters.admission import AdmittedComposition
from generation_service.adapters.host_cache import HostCache
from generation_service.adapters.leases import AdapterKey, BankLease, Resident, ResidentAdapter, ResidentKey
from generation_service.adapters.load import ENDED_STATES, CompositionLoad, LoadState, OnReady, Outcome
from generation_service.adapters.placement import Deferred, Placement
from generation_service.adapters.ranges import plan_ranges
from generation_service.lora.bank import AdapterBank
from infra.contract.composition import Fusion
from infra.contract.errors import UnavailableError
from infra.runtime.logs import get_logger

READ_AHEAD = 16
"""Compositions whose weights may be on the host while they wait for room in the bank.

It bounds host memory beyond the host cache; more would not be placed sooner, as the bank is full.
"""
_READERS = 4
"""Reader threads. They wait for disks and copy outside the interpreter lock, so more of them read faster."""

log = get_logger(__name__)


class Residency:
    """Brings admitted compositions into the bank and leases them.

    Reader threads read weights; one placer thread alone changes what is resident. Compositions are placed first come,
    first served, in the order in which they became ready. A composition gets all its ranges or none, so two can never
    deadlock on each other; one that does not fit blocks those behind it until running sequences release their leases.
    """

    def __init__(self, bank: AdapterBank, host_cache: HostCache, readers: int = _READERS) -> None:
        self._host_cache = host_cache
        self._placement = Placement(bank)
        # Guards: `_queued`, `_ahead`, `_closed`, and the state and callback of every load. Held for moments only:
        # never while a callback runs, and never together with the placement's lock.
        self._lock = threading.Lock()
        self._queued: OrderedDict[CompositionLoad, None] = OrderedDict()
        self._ahead: set[CompositionLoad] = set()  # At most READ_AHEAD loads, which may hold weights on the host.
        self._closed = False
        # Changed by the placer thread only. Other threads may ask whether it is empty.
        self._waiting_for_room: deque[CompositionLoad] = deque()
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="adapter-reader")
        self._placer = ThreadPoolExecutor(1, thread_name_prefix="adapter-placer")

    def request(self, composition: AdmittedComposition, on_ready: OnReady) -> CompositionLoad:
        """Load `composition`; call `on_ready` once with its lease or an error, unless the load is cancelled first.

        Safe from any thread; does not block. `on_ready` is called on the placer or a reader thread, or on this one
        before it returns, and must not block.
        """
        load = CompositionLoad(composition, plan_ranges(composition, self._host_cache), on_ready, self._cancel)
        if not load.ranges:
            self._finish(load, BankLease({}, (), self._release))
        elif self._placement.absent(load.ranges):
            self._enqueue(load)
        else:
            # Everything is resident: skip the readers, which may be busy with slow disks.
            self._submit_to_placer(load)
        return load

    def pin(self, composition: AdmittedComposition) -> Future[ResidentAdapter]:
        """Load the one adapter of `composition` and keep it in the bank until `unpin`, instead of older revisions.

        The future raises what loading raises, and CapacityError if pinned adapters would hold more than half of the
        bank. Raises ValueError unless `composition` has exactly one adapter.
        """
        (share,) = (adapter.share for adapter in composition.adapters)
        future: Future[ResidentAdapter] = Future()
        future.set_running_or_notify_cancel()

        def on_ready(outcome: Outcome) -> None:
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
                return
            try:
                future.set_result(self._placement.pin(AdapterKey(share.adapter_id, share.revision)))
            except Exception as error:
                future.set_exception(error)
            finally:
                outcome.release()

        self.request(composition, on_ready)
        return future

    def unpin(self, adapter_id: str) -> None:
        """Make an adapter evictable again. Raises NotFoundError if it is not resident."""
        self._placement.unpin(adapter_id)
        self._wake_placer()

    def residents(self) -> list[ResidentAdapter]:
        """Return the resident adapters, least recently used first."""
        return self._placement.adapters()

    def pinned_ranks(self, excluding: Set[ResidentKey] = frozenset()) -> int:
        """Return the ranks that pinned adapters hold, those of `excluding` left out."""
        return self._placement.pinned_ranks(excluding)

    @property
    def leased_ranks(self) -> int:
        """Ranks of the bank under lease."""
        return self._placement.leased_ranks

    @property
    def ranks(self) -> int:
        """Ranks of the bank that adapters and fusions occupy, leased or not."""
        return self._placement.ranks

    @property
    def queued(self) -> int:
        """Loads that wait for a reader."""
        return len(self._queued)

    @property
    def waiting_for_room(self) -> int:
        """Loads that are ready and wait for room in the bank."""
        return len(self._waiting_for_room)

    def close(self) -> None:
        """Stop the threads. Loads that have not ended fail with UnavailableError."""
        with self._lock:
            self._closed = True
        self._readers.shutdown(wait=True, cancel_futures=True)
        self._placer.shutdown(wait=True)
        with self._lock:
            waiting = [*self._queued, *self._waiting_for_room]
            self._queued.clear()
            self._waiting_for_room.clear()
        for load in waiting:
            self._finish(load, _stopping())

    def _enqueue(self, load: CompositionLoad) -> None:
        """Queue a load to be read."""
        with self._lock:
            closed, cancelled = self._closed, load.state is LoadState.CANCELLED
            if not closed and not cancelled:
                load.state = LoadState.QUEUED
                self._queued[load] = None
        if closed:
            self._finish(load, _stopping())
        elif cancelled:
            self._discard(load)
        else:
            self._start_reading()

    def _start_reading(self) -> None:
        """Start to read the oldest queued loads, as many as may hold weights."""
        starting = []
        with self._lock:
            while self._queued and len(self._ahead) < READ_AHEAD and not self._closed:
                load, _ = self._queued.popitem(last=False)
                load.state = LoadState.READING
                self._ahead.add(load)
                starting.append(load)
        for load in starting:
            self._submit(self._readers, self._read, load)

    def _read(self, load: CompositionLoad) -> None:
        """Read the weights that are not resident. Called on: reader thread."""
        if load.state is LoadState.CANCELLED:
            self._discard(load)
            return
        try:
            for request in load.ranges if load.lost_range else self._placement.absent(load.ranges):
                request.weights = request.load()
        except Exception as error:
            self._finish(load, error)
            return
        self._submit_to_placer(load)

    def _submit_to_placer(self, load: CompositionLoad) -> None:
        with self._lock:
            if load.state not in ENDED_STATES:
                load.state = LoadState.READY_TO_PLACE
        self._submit(self._placer, self._add_ready, load)

    def _add_ready(self, load: CompositionLoad) -> None:
        """Take a load that is ready, and place what fits. Called on: placer thread."""
        if load.lost_range:
            self._waiting_for_room.appendleft(load)
        else:
            self._waiting_for_room.append(load)
        self._place_waiting()

    def _place_waiting(self) -> None:
        """Place the waiting loads in order, up to the first one that does not fit. Called on: placer thread."""
        self._discard_cancelled()
        while self._waiting_for_room:
            load = self._waiting_for_room[0]
            outcome = self._place(load)
            if outcome is Deferred.NO_ROOM:
                return
            self._waiting_for_room.popleft()
            if outcome is Deferred.NOT_READ:
                self._read_again(load)
            else:
                self._finish(load, outcome)

    def _discard_cancelled(self) -> None:
        for load in [load for load in self._waiting_for_room if load.state is LoadState.CANCELLED]:
            self._waiting_for_room.remove(load)
            self._discard(load)

    def _place(self, load: CompositionLoad) -> Outcome | Deferred:
        try:
            placed = self._placement.place(load.ranges, load.composition.path)
        except Exception as error:
            return error
        if isinstance(placed, Deferred):
            return placed
        composition = load.composition.composition
        fusion_method = composition.method if isinstance(composition, Fusion) else None
        applied = tuple(adapter.share for adapter in load.composition.adapters)
        return BankLease(placed, applied, self._release, fusion_method)

    def _read_again(self, load: CompositionLoad) -> None:
        """Read a load's ranges that were evicted while it waited. Called on: placer thread."""
        load.lost_range = True
        with self._lock:
            holds_weights = load in self._ahead
            if holds_weights and load.state not in ENDED_STATES:
                load.state = LoadState.READING
        if holds_weights:
            self._submit(self._readers, self._read, load)
        else:
            self._enqueue(load)

    def _finish(self, load: CompositionLoad, outcome: Outcome) -> None:
        """End a load with its outcome. A lease that the receiver does not take is released."""
        with self._lock:
            on_ready, load.on_ready = load.on_ready, None
            if load.state is not LoadState.CANCELLED:
                load.state = LoadState.LEASED if isinstance(outcome, BankLease) else LoadState.FAILED
        load.ranges = []
        received = False
        if on_ready is not None:
            try:
                on_ready(outcome)
                received = True
            except Exception:
                log.exception("lease_receiver_failed")
        if not received and isinstance(outcome, BankLease):
            outcome.release()
        self._discard(load)

    def _discard(self, load: CompositionLoad) -> None:
        """Free the weights of a load that has ended, and let the next one be read."""
        load.ranges = []
        with self._lock:
            held_weights = load in self._ahead
            self._ahead.discard(load)
        if held_weights:
            self._start_reading()

    def _cancel(self, load: CompositionLoad) -> None:
        """Cancel a load. A queued one is freed here, any other by the thread that works on it."""
        with self._lock:
            if load.state in ENDED_STATES:
                return
            queued = load in self._queued
            self._queued.pop(load, None)
            load.state = LoadState.CANCELLED
            load.on_ready = None
        if queued:
            self._discard(load)
        else:
            self._wake_placer()

    def _release(self, leased: Mapping[Resident, float]) -> None:
        self._placement.release(leased)
        self._wake_placer()

    def _wake_placer(self) -> None:
        """Let the placer try again. Does nothing if no load waits for room."""
        if self._waiting_for_room:
            with suppress(RuntimeError):  # The placer was shut down: `close` ends the loads that wait.
                self._placer.submit(self._place_waiting)

    def _submit(self, executor: Executor, work: Callable[[CompositionLoad], None], load: CompositionLoad) -> None:
        """Run `work` for a load. If the executor is shut down before it runs, the load fails as UNAVAILABLE."""
        try:
            future = executor.submit(work, load)
        except RuntimeError:
            self._finish(load, _stopping())
            return
        future.add_done_callback(lambda done: self._finish(load, _stopping()) if done.cancelled() else None)


def _stopping() -> UnavailableError:
    return UnavailableError("the server is stopping: retry")
