"""A shard's lease while a worker carries it out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from infra.contract.errors import UnavailableError
from infra.runtime.logs import get_logger
from orchestrator.evaluation.records import Record
from orchestrator.jobs.ledger.ledger import Ledger
from orchestrator.jobs.ledger.types import Lease, Taken
from orchestrator.jobs.worker.sample_runner import InterruptedSampleError

log = get_logger(__name__)

AWAY_PAUSE_S = 0.5

T = TypeVar("T")


@dataclass(frozen=True)
class ShardLimits:
    """Samples answered at once; seconds a try may take, full services are borne, until a shard is handed on, and a
    stopping worker's samples may go on.
    """

    concurrency: int = 8
    sample_timeout_s: float = 300.0
    patience_s: float = 300.0
    time_limit_s: float = 900.0
    stop_grace_s: float = 10.0


class Hold:
    """A unit's lease, kept up while `keep_up` runs. `stop` is set when no further sample may be begun.

    `begun` holds the keys of the samples under way whose try counts, `changed` the datasets that are not as planned;
    `owed` takes the tries that could not be given back.
    """

    def __init__(
        self,
        ledger: Ledger,
        taken: Taken,
        limits: ShardLimits,
        stopping: asyncio.Event,
        owed: set[tuple[Taken, str]],
    ) -> None:
        self.taken = taken
        self.evaluation_id = taken.evaluation_id
        self.stop = asyncio.Event()
        self.lost = False
        self.cancelled = False
        self.begun: set[str] = set()
        self.changed: set[str] = set()
        self._ledger = ledger
        self._stopping = stopping
        self._owed = owed
        self._until = time.monotonic() + limits.time_limit_s
        self._stop_grace_s = limits.stop_grace_s
        self._under_way: set[asyncio.Task[Record]] = set()

    def learn(self, lease: Lease) -> None:
        """Take note of what the ledger said of the lease."""
        self.lost = self.lost or lease is Lease.LOST
        self.cancelled = self.cancelled or lease is Lease.CANCELLED
        if lease is not Lease.HELD:
            self.stop.set()

    async def insist(self, call: Callable[[], Awaitable[T]]) -> T:
        """Return what a call of the ledger gives; while Redis is away it is made again, unless the worker stops."""
        return await insist(call, lambda: self.lost or self._stopping.is_set())

    async def guard(self, answering: Coroutine[Any, Any, Record]) -> Record:
        """Return what `answering` gives; InterruptedSampleError when it outlives the grace of a stop."""
        task = asyncio.create_task(answering)
        self._under_way.add(task)
        try:
            return await task
        except asyncio.CancelledError as error:
            if self._stopping.is_set() and task.cancelled():
                raise InterruptedSampleError from error
            raise
        finally:
            task.cancel()
            self._under_way.discard(task)

    async def give_back(self, key: str) -> None:
        """Uncount the try of a sample under way: this worker has not died of it."""
        if key in self.begun:
            self.begun.discard(key)
            try:
                await self._ledger.samples.abandon(self.taken, key)
            except UnavailableError:
                self._owed.add((self.taken, key))

    async def give_back_all(self) -> None:
        """Uncount the tries of all samples under way."""
        for key in tuple(self.begun):
            await self.give_back(key)

    async def keep_up(self) -> None:
        """Renew the lease until it is lost; then give back the tries of the samples under way."""
        while not self.lost:
            await asyncio.sleep(self._ledger.limits.lease_s / 4)
            if time.monotonic() > self._until:
                self.stop.set()
            await keep(self._ledger, self.taken, self.learn)
        await self.give_back_all()

    async def hear_stop(self) -> None:
        """Wait for the worker to stop, then for the grace that samples under way have."""
        await self._stopping.wait()
        self.stop.set()
        await asyncio.sleep(self._stop_grace_s)
        for task in self._under_way:
            task.cancel()


async def insist(call: Callable[[], Awaitable[T]], is_over: Callable[[], bool]) -> T:
    """Return what a call of the ledger gives; while Redis is away it is made again, until `is_over` says so."""
    while True:
        try:
            return await call()
        except UnavailableError:
            if is_over():
                raise
            await asyncio.sleep(AWAY_PAUSE_S)


async def keep(ledger: Ledger, taken: Taken, learn: Callable[[Lease], None]) -> None:
    """Renew a lease once and tell what the ledger said; what goes wrong is logged, and to be tried again."""
    try:
        learn(await ledger.units.renew(taken))
    except UnavailableError as error:
        log.warning("lease not renewed", evaluation_id=taken.evaluation_id, unit=taken.unit, reason=error.message)
    except Exception:
        log.exception("lease not renewed", evaluation_id=taken.evaluation_id, unit=taken.unit)
