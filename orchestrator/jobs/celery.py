"""Celery: one queue on Redis whose messages wake workers and carry nothing else.

Nothing outside this module imports Celery. The ledger decides what a worker does; a lost, repeated or late message
only changes when that happens.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Any, Protocol

from celery import Celery, signals

from infra.runtime.logs import get_logger
from orchestrator.jobs.ledger.store import RedisStore

log = get_logger(__name__)

QUEUE = "loraretriever.evaluation"
_WORK_TASK = "loraretriever.work"

# A job may have thousands of shards; the reconciler sends the rest. Bounds the time of a call of `wake`.
_MAX_MESSAGES_PER_WAKE = 1000

# A broker that accepts connections and never replies must not block a caller for ever.
SOCKET_TIMEOUT_S = 15
CONNECT_TIMEOUT_S = 5

# kombu's defaults bring the message of a killed worker back after 87 s at a visibility timeout of 15 s; these after
# 17.5 s. Leases do not wait for either: the reconciler sends another message.
_UNACKED_RESTORE_INTERVAL_S = 2
_UNACKED_RESTORE_THROTTLE = 1

_CONSUMER_PAUSE_S = 1.0  # Before the consumer starts again: a failover takes seconds, a tight loop would fill the log.
_CHATTY_LOGGERS = ("celery.worker.strategy", "celery.app.trace")  # They log every message at level info.


class WorkHandler(Protocol):
    """Does units of work: orchestrator.jobs.worker.process.WorkerProcess."""

    @property
    def stopping(self) -> bool:
        """Whether the worker was asked to stop."""

    def work(self) -> str:
        """Do the unit that is most due; return a few words on it for Celery's events.

        Called on: Celery's threads, several at a time.
        """

    def stop(self) -> None:
        """Begin no further work. Called on: the main thread, in a signal handler."""


def make_app(redis_url: str, visibility_timeout_s: int) -> Celery:
    """Return an app of JSON messages that are acknowledged late and have no results: those are in the ledger."""
    app = Celery("loraretriever", broker=redis_url, set_as_current=False)
    app.conf.update(
        task_default_queue=QUEUE,
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_acks_late=True,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        # A shard under way outlives a lost broker connection: its lease is in the ledger.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_send_task_events=True,
        task_send_sent_event=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_pool_limit=4,
        broker_transport_options={
            "visibility_timeout": visibility_timeout_s,
            "unacked_restore_interval": _UNACKED_RESTORE_INTERVAL_S,
            "unacked_restore_throttle": _UNACKED_RESTORE_THROTTLE,
            "health_check_interval": 10,
            "socket_timeout": SOCKET_TIMEOUT_S,
            "socket_connect_timeout": CONNECT_TIMEOUT_S,
            "socket_keepalive": not redis_url.startswith("redis+socket"),
        },
    )
    return app


class CeleryDispatcher:
    """Wakes workers through the queue of an app."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def wake(self, count: int) -> int:
        """Queue a message for each of `count` units, up to a limit; return how many.

        Blocks. May be called on any thread.

        Raises:
            kombu.exceptions.OperationalError: the broker is away.
        """
        policy = {"max_retries": 2, "interval_start": 0.1, "interval_step": 0.3, "interval_max": 1.0}
        sent = min(count, _MAX_MESSAGES_PER_WAKE)
        with self._app.producer_or_acquire() as producer:
            for _ in range(sent):
                self._app.send_task(_WORK_TASK, producer=producer, retry=True, retry_policy=policy)
        return sent


async def queue_length(store: RedisStore) -> int:
    """Return how many messages wait in the queue, which is a list of that name in Redis."""
    return int(await store.call(store.redis.llen(QUEUE)))


def run_worker(app: Celery, handler: WorkHandler, *, threads: int, on_ready: Callable[[], None]) -> None:
    """Pass messages to a handler on `threads` threads until a stop signal arrives and the last handler has returned.

    `on_ready` is called once, when messages are consumed. Called on: the main thread.
    """

    @app.task(name=_WORK_TASK)  # type: ignore[untyped-decorator]
    def work() -> str:
        return handler.work()

    # Celery holds its receivers weakly: they must live until the consumer has ended.
    def stop(**_: Any) -> None:
        handler.stop()

    is_ready = False

    def ready(**_: Any) -> None:
        nonlocal is_ready
        if not is_ready:
            is_ready = True
            on_ready()

    def keep_logging(**_: Any) -> None:
        """Celery replaces the logging of the process unless this signal has a receiver."""

    for name in _CHATTY_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    signals.setup_logging.connect(keep_logging)
    signals.worker_shutting_down.connect(stop)
    signals.worker_ready.connect(ready)
    while True:
        exit_code = _consume(app, threads)
        if handler.stopping or not exit_code:
            break
        # Celery gives up on a Redis that answers but takes no changes, as during a failover.
        log.error("consumer_ended", exit_code=exit_code, restart_in_s=_CONSUMER_PAUSE_S)
        time.sleep(_CONSUMER_PAUSE_S)
    # Celery's handlers outlive its consumer: a second signal would call a handler that may be closed by then.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _consume(app: Celery, threads: int) -> int:
    """Run a consumer until it ends; return its exit code."""
    consumer = app.Worker(
        hostname=f"worker-{os.getpid()}@{socket.gethostname()}",
        # gRPC does not survive a fork from a process with an RPC under way.
        pool_cls="threads",
        concurrency=threads,
        # Workers do not need to know of each other; gossip and mingle cost a message per worker and event.
        without_gossip=True,
        without_mingle=True,
        quiet=True,
    )
    consumer.start()
    return consumer.exitcode or 0
