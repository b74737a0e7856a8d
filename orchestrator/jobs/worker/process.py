"""A worker process: its clients, its ledger, and the event loop on which everything that waits runs."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import AsyncExitStack
from dataclasses import dataclass

from infra.runtime.logs import get_logger
from orchestrator.answering.pipeline import Pipeline
from orchestrator.clients.generation import GenerationClient
from orchestrator.clients.retrieval import RetrievalClient
from orchestrator.jobs import metrics as job_metrics
from orchestrator.jobs.event_loop import EventLoopThread, in_background
from orchestrator.jobs.ledger.ledger import Ledger
from orchestrator.jobs.ledger.store import RedisStore
from orchestrator.jobs.ledger.types import Claim, LedgerLimits
from orchestrator.jobs.service import Dispatcher
from orchestrator.jobs.worker.isolation import Isolation
from orchestrator.jobs.worker.report_writer import ReportWriter
from orchestrator.jobs.worker.shard_lease import ShardLimits
from orchestrator.jobs.worker.shard_runner import Outcome, ShardRunner
from orchestrator.settings import OrchestratorSettings

log = get_logger(__name__)

_REDIS_RETRIES = 20  # About 30 s of pauses: most restarts of Redis pass within one call.


@dataclass(frozen=True)
class _WorkDone:
    """What was done, in a few words, and whether another worker is to be woken for what follows from it."""

    description: str
    wake_another: bool = False


class WorkerProcess:
    """Does units of work for Celery's threads, on one event loop. Implements orchestrator.jobs.celery.WorkHandler."""

    def __init__(self, settings: OrchestratorSettings, dispatcher: Dispatcher) -> None:
        self._stop_requested = False
        self._dispatcher = dispatcher
        self._stop_grace_s = settings.server.shutdown_grace_s
        # Celery's threads block in `work`. All waiting, for Redis, for services and for timers, is done on this one
        # loop, so that leases, isolation and clients need no locks.
        self._loop = EventLoopThread()
        self._resources = AsyncExitStack()
        self._stopping = asyncio.Event()
        """Set on the loop once no further sample may be begun."""
        self._loop.run(self._connect(settings))

    async def _connect(self, settings: OrchestratorSettings) -> None:
        enter = self._resources.enter_async_context
        retrieval = await enter(RetrievalClient(settings.channel(settings.retrieval_target)))
        generation = await enter(GenerationClient(settings.channel(settings.generation_target)))
        self._store = await enter(RedisStore(settings.redis_url, retries=_REDIS_RETRIES))
        self._ledger = ledger = Ledger(self._store, LedgerLimits.of(settings))
        isolation, roots = Isolation(), settings.dataset_roots
        pipeline = Pipeline(retrieval, generation)
        self._shards = ShardRunner(ledger, pipeline, roots, ShardLimits.of(settings), isolation)
        self._reports = ReportWriter(ledger, roots, isolation, settings.server.shutdown_grace_s)
        await enter(in_background(ledger.workers.beat_forever(f"{socket.gethostname()}-{os.getpid()}")))

    @property
    def stopping(self) -> bool:
        """Whether the worker was asked to stop."""
        return self._stop_requested

    def work(self) -> str:
        """Do the unit of work that is most due; return its job, its name and how it was left, for Celery's events.

        Called on: Celery's threads.
        """
        done = self._loop.run(self._work())
        # After the loop's part: sending a message blocks.
        if done.wake_another:
            self._dispatcher.wake(1)
        return done.description

    def stop(self) -> None:
        """Begin no further sample. Called on: any thread, also in a signal handler."""
        self._stop_requested = True
        self._loop.call_soon(self._begin_stop)

    def close(self) -> None:
        """Close the clients and the loop."""
        self._loop.run(self._resources.aclose())
        self._loop.close()

    def _begin_stop(self) -> None:
        self._stopping.set()
        # After the grace no sample is under way. A Redis that is still away must not delay the exit further.
        asyncio.get_running_loop().call_later(self._stop_grace_s, self._store.stop_retrying)

    async def _work(self) -> _WorkDone:
        if self._stopping.is_set():
            return _WorkDone("none: stopping", wake_another=True)
        claim = await self._ledger.claim()
        if claim is None:
            return _WorkDone("none: nothing to do")
        return await (self._write_report(claim) if claim.is_report else self._run_shard(claim))

    async def _write_report(self, claim: Claim) -> _WorkDone:
        ended = await self._reports.run(claim, self._stopping)
        return _WorkDone(f"{claim.evaluation_id} report{'' if ended else ': released'}", wake_another=not ended)

    async def _run_shard(self, claim: Claim) -> _WorkDone:
        with job_metrics.shards_running.track_inprogress():
            outcome = await self._shards.run(claim, self._stopping)
        job_metrics.shards_total.labels(outcome.value).inc()
        log.info("shard_left", evaluation_id=claim.evaluation_id, shard=claim.unit, outcome=outcome.value)
        return _WorkDone(
            f"{claim.evaluation_id} shard {claim.unit}: {outcome.value}",
            wake_another=outcome in (Outcome.LAST, Outcome.UNFINISHED),
        )
