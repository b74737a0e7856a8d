"""The lease of a shard, as the worker that holds it sees it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeVar

from infra.contract.errors import UnavailableError
from infra.runtime.logs import get_logger
from orchestrator.evaluation.records import Record
from orchestrator.jobs import metrics as job_metrics
from orchestrator.jobs.event_loop import in_background
from orchestrator.jobs.ledger.ledger import Ledger
from orchestrator.jobs.ledger.replies import LeaseState, Start
from orchestrator.jobs.ledger.types import Claim
from orchestrator.jobs.worker.sample_runner import InterruptedSampleError
from orchestrator.settings import OrchestratorSettings

log = get_logger(__name__)

RENEWALS_PER_LEASE = 4  # Two renewals in a row may fail before the lease runs out.
AWAY_PAUSE_S = 0.5  # After a call whose own retries all failed; the store paused for up to 30 s already.

_T = TypeVar("_T")


@dataclass(frozen=True)
class ShardLimits:
    """How a worker runs a shard.

    Attributes:
        concurrency: Samples answered at the same time.
        sample_timeout_s: Longest time of one try of a sample.
        patience_s: Seconds for which a sample is tried again while a service is full or unreachable.
        time_limit_s: Seconds after which an unfinished shard is released.
        stop_grace_s: Seconds for which the samples under way in a stopping worker may go on.
    """

    concurrency: int = 8
    sample_timeout_s: float = 300.0
    patience_s: float = 300.0
    time_limit_s: float = 900.0
    stop_grace_s: float = 10.0

    @classmethod
    def of(cls, settings: OrchestratorSettings) -> ShardLimits:
        """Return the limits that the settings give."""
        return cls(
            concurrency=settings.concurrency,
            sample_timeout_s=settings.sample_timeout_s,
            patience_s=settings.patience_s,
            time_limit_s=settings.shard_time_limit_s,
            stop_grace_s=settings.server.shutdown_grace_s,
        )


class ShardState(IntEnum):
    """The states of a shard lease, in the order in which it can pass through them; it never goes back."""

    ACTIVE = 0
    """Samples are begun."""
    DRAINING = 1
    """The worker stops, or the shard took too long: no further sample is begun, the shard is released."""
    CANCELLED = 2
    """The job was cancelled: no further sample is begun, the shard is completed."""
    LOST = 3
    """Another worker holds the shard: it is left alone. Answers under way are still recorded, first come first kept."""


class ShardLease:
    """The lease of one shard, the state it is in, and the samples that were begun under it.

    Called on: the worker's event loop. State changes between awaits only, so no lock is needed.
    """

    def __init__(self, ledger: Ledger, claim: Claim, limits: ShardLimits, stopping: asyncio.Event) -> None:
        self.claim = claim
        self.draining = asyncio.Event()
        """Set when the lease leaves ACTIVE."""
        self.unreturned_tries: set[tuple[Claim, str]] = set()
        """Tries of samples that Redis has not confirmed as unclaimed."""
        self._ledger = ledger
        self._stopping = stopping
        self._state = ShardState.ACTIVE
        self._drain_at = time.monotonic() + limits.time_limit_s
        self._stop_grace_s = limits.stop_grace_s
        self._begun: set[str] = set()
        self._answering: set[asyncio.Task[Record]] = set()

    @property
    def state(self) -> ShardState:
        """The state of the lease."""
        return self._state

    @property
    def is_active(self) -> bool:
        """Whether samples may be begun."""
        return self._state is ShardState.ACTIVE

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Renew the lease while the block runs; then unclaim the samples that it has begun and not recorded."""
        try:
            async with in_background(self._renew_until_lost(), self._drain_on_stop()):
                yield
        finally:
            await self._unclaim_all()

    async def begin(self, key: str) -> Start:
        """Count a try of a sample, and return whether it may be made."""
        # Before the call: Redis counts the try even if its reply is lost.
        self._begun.add(key)
        start = await self._retry_while_unavailable(lambda: self._ledger.begin_sample(self.claim, key))
        if start is not Start.BEGUN:
            self._begun.discard(key)
        match start:
            case Start.LOST:
                self._advance(ShardState.LOST)
            case Start.CANCELLED:
                self._advance(ShardState.CANCELLED)
            case Start.BEGUN | Start.RECORDED | Start.EXHAUSTED:
                pass
        return start

    async def answer(self, answering: Coroutine[Any, Any, Record]) -> Record:
        """Return the result of `answering`.

        Raises:
            InterruptedSampleError: it took longer than the grace of a stopping worker.
        """
        task = asyncio.create_task(answering)
        self._answering.add(task)
        try:
            return await task
        except asyncio.CancelledError as error:
            # Cancelled by `_drain_on_stop`, or with the whole shard?
            if self._stopping.is_set() and task.cancelled():
                raise InterruptedSampleError from error
            raise
        finally:
            task.cancel()
            self._answering.discard(task)

    async def record(self, record: Record) -> Record:
        """Store a record and return it; return the stored one if another worker was first."""
        key = record.sample.key
        if await self._retry_while_unavailable(lambda: self._ledger.record(self.claim, record)):
            job_metrics.samples_total.labels("failed" if record.error is not None else "answered").inc()
        else:
            stored = await self._ledger.samples.records_of(self.claim.evaluation_id, [key])
            record = stored.get(key, record)
        self._begun.discard(key)
        return record

    async def unclaim(self, key: str) -> None:
        """Undo `begin`: this worker has not died of the sample."""
        if key not in self._begun:
            return
        self._begun.discard(key)
        # Until Redis has confirmed it: the call may fail, or be cancelled with the task that makes it.
        self.unreturned_tries.add((self.claim, key))
        with suppress(UnavailableError):
            await self._ledger.unclaim_sample(self.claim, key)
            self.unreturned_tries.discard((self.claim, key))

    def on_lease_state(self, state: LeaseState) -> None:
        """Follow what the ledger replied to a renewal."""
        match state:
            case LeaseState.HELD:
                pass
            case LeaseState.CANCELLED:
                self._advance(ShardState.CANCELLED)
            case LeaseState.LOST:
                self._advance(ShardState.LOST)

    def _advance(self, state: ShardState) -> None:
        self._state = max(self._state, state)
        self.draining.set()

    async def _renew_until_lost(self) -> None:
        while self._state is not ShardState.LOST:
            await asyncio.sleep(self._ledger.limits.lease_s / RENEWALS_PER_LEASE)
            if time.monotonic() > self._drain_at:
                self._advance(ShardState.DRAINING)
            await renew(self._ledger, self.claim, self.on_lease_state)
        # The next owner must not count these tries against the samples: this worker is alive.
        await self._unclaim_all()

    async def _drain_on_stop(self) -> None:
        await self._stopping.wait()
        self._advance(ShardState.DRAINING)
        await asyncio.sleep(self._stop_grace_s)
        for task in self._answering:
            task.cancel()

    async def _unclaim_all(self) -> None:
        for key in tuple(self._begun):
            await self.unclaim(key)

    async def _retry_while_unavailable(self, call: Callable[[], Awaitable[_T]]) -> _T:
        return await retry_while_unavailable(call, lambda: self._state is ShardState.LOST or self._stopping.is_set())


async def retry_while_unavailable(call: Callable[[], Awaitable[_T]], is_over: Callable[[], bool]) -> _T:
    """Return the result of a call of the ledger, repeated while Redis is away until `is_over`.

    Raises:
        UnavailableError: Redis is away, and it is over.
    """
    while True:
        try:
            return await call()
        except UnavailableError:
            if is_over():
                raise
            await asyncio.sleep(AWAY_PAUSE_S)


async def renew(ledger: Ledger, claim: Claim, on_lease_state: Callable[[LeaseState], None]) -> None:
    """Renew a lease once and pass on its state. Failures are logged: the next renewal is a new chance."""
    try:
        on_lease_state(await ledger.renew(claim))
    except UnavailableError as error:
        log.warning("renewal_failed", evaluation_id=claim.evaluation_id, unit=claim.unit, reason=error.message)
    except Exception:
        log.exception("renewal_failed", evaluation_id=claim.evaluation_id, unit=claim.unit)
