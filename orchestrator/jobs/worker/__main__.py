"""`python -m orchestrator.jobs.worker`: a Celery worker that carries out shards of evaluation jobs.

Celery's threads take messages; everything that waits for Redis or a service runs on one event loop. A stop signal ends
it warmly: samples under way are finished, unfinished shards are handed on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from typing import Any

from celery import Celery, signals
from celery.utils.nodenames import gethostname

from infra.contract.errors import ConfigurationError
from infra.runtime.lifecycle import ready_file
from infra.runtime.logs import get_logger
from infra.runtime.main import run_tier
from orchestrator.answering.pipeline import Pipeline
from orchestrator.clients.generation import GenerationClient
from orchestrator.clients.retrieval import RetrievalClient
from orchestrator.jobs import metrics as job_metrics
from orchestrator.jobs.celery import CeleryDispatcher, make_celery
from orchestrator.jobs.event_loop import EventLoopThread, in_background
from orchestrator.jobs.ledger.ledger import Ledger
from orchestrator.jobs.ledger.store import RedisStore
from orchestrator.jobs.ledger.types import FINISH
from orchestrator.jobs.tasks import register_tasks
from orchestrator.jobs.worker.isolation import Isolation
from orchestrator.jobs.worker.report_writer import Finish
from orchestrator.jobs.worker.shard_run import Outcome, ShardRun
from orchestrator.settings import OrchestratorSettings

log = get_logger(__name__)

REDIS_RETRIES = 20
CONSUMER_PAUSE_S = 1.0
CHATTY_LOGGERS = ("celery.worker.strategy", "celery.app.trace")


@dataclass(frozen=True)
class _Done:
    """What was done, in words, and whether another worker is to be woken for what follows from it."""

    said: str
    wake: bool = False


class Worker:
    """The clients, the ledger and the event loop of one worker process, and what Celery's threads do with them.

    `stops`: a stop signal has come.
    """

    def __init__(self, settings: OrchestratorSettings, app: Celery) -> None:
        self.stops = False
        self._dispatcher = CeleryDispatcher(app)
        self._loop = EventLoopThread()
        self._open = AsyncExitStack()
        self._stopping = asyncio.Event()
        self._loop.run(self._connect(settings))

    async def _connect(self, settings: OrchestratorSettings) -> None:
        enter = self._open.enter_async_context
        retrieval = await enter(RetrievalClient(settings.channel(settings.retrieval_target)))
        generation = await enter(GenerationClient(settings.channel(settings.generation_target)))
        store = await enter(RedisStore(settings.redis_url, retries=REDIS_RETRIES))
        self._ledger = ledger = Ledger(store, settings.ledger_limits)
        isolation, roots = Isolation(), settings.dataset_roots
        self._shards = ShardRun(ledger, Pipeline(retrieval, generation), roots, settings.shard_limits, isolation)
        self._finish = Finish(ledger, roots, isolation, settings.server.shutdown_grace_s)
        await enter(in_background(ledger.workers.beat_forever(f"{gethostname()}-{os.getpid()}")))

    def work(self) -> str:
        """Do the unit of work that is most due; return its job, its name and how it was left, for Celery's events."""
        done = self._loop.run(self._work())
        if done.wake:
            self._dispatcher.wake(1)
        return done.said

    async def _work(self) -> _Done:
        if self._stopping.is_set():
            return _Done("none: stopping", wake=True)
        taken = await self._ledger.units.take()
        if taken is None:
            return _Done("none: nothing to do")
        if taken.unit == FINISH:
            ended = await self._finish.run(taken, self._stopping)
            return _Done(f"{taken.evaluation_id} report{'' if ended else ': handed on'}", wake=not ended)
        with job_metrics.shards_running.track_inprogress():
            outcome = await self._shards.run(taken, self._stopping)
        job_metrics.shards_total.labels(outcome.value).inc()
        log.info("shard left", evaluation_id=taken.evaluation_id, shard=taken.unit, outcome=outcome.value)
        said = f"{taken.evaluation_id} shard {taken.unit}: {outcome.value}"
        return _Done(said, wake=outcome in (Outcome.LAST, Outcome.UNFINISHED))

    def stop_beginning(self) -> None:
        """Begin no further sample. From any thread, or a signal handler."""
        self.stops = True
        self._loop.call_soon(self._stopping.set)

    def close(self) -> None:
        """Close the clients and the loop."""
        self._loop.run(self._open.aclose())
        self._loop.close()


def serve(settings: OrchestratorSettings) -> None:
    """Take shards from the queue until a stop signal comes."""
    if not settings.redis_url:
        raise ConfigurationError(
            "a worker needs --redis-url (LORARETRIEVER_ORCHESTRATOR_REDIS_URL): the one of the orchestrator, "
            "which logs the address of its embedded Redis when it starts one"
        )
    app = make_celery(settings.redis_url, settings.visibility_timeout_s)
    worker = Worker(settings, app)
    register_tasks(app, worker)

    ready: list[None] = []

    def on_stop(**_: Any) -> None:
        worker.stop_beginning()

    def on_ready(**_: Any) -> None:
        if not ready:
            ready.append(open_files.enter_context(ready_file(settings.server.ready_file, "worker")))
        log.info("serving", shards=settings.worker_shards, samples_a_shard=settings.concurrency)

    def leave_logging_alone(**_: Any) -> None:
        """Celery sets up its own logs unless somebody listens to this signal."""

    for chatty in CHATTY_LOGGERS:
        logging.getLogger(chatty).setLevel(logging.WARNING)
    signals.setup_logging.connect(leave_logging_alone)
    signals.worker_shutting_down.connect(on_stop)
    signals.worker_ready.connect(on_ready)
    with ExitStack() as open_files:
        while True:
            consumer = app.Worker(
                hostname=f"worker-{os.getpid()}@{gethostname()}",
                pool_cls="threads",
                concurrency=settings.worker_shards,
                without_gossip=True,
                without_mingle=True,
                quiet=True,
            )
            consumer.start()
            if worker.stops or not consumer.exitcode:
                break
            # Celery gives up where a Redis answers but takes no changes, as during a failover.
            log.error("the consumer of messages ended; it starts again", pause_s=CONSUMER_PAUSE_S)
            time.sleep(CONSUMER_PAUSE_S)
    # Celery's handlers know nothing of a worker that has stopped: a second signal would meet a closed loop.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    worker.close()


if __name__ == "__main__":
    run_tier(serve, OrchestratorSettings)
