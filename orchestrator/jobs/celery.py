"""The Celery app: one queue on Redis, whose messages wake workers and say nothing else."""

from __future__ import annotations

from celery import Celery

QUEUE = "loraretriever.evaluation"
WORK_TASK = "loraretriever.work"
MOST_AT_ONCE = 1000
SOCKET_TIMEOUT_S = 15
CONNECT_TIMEOUT_S = 5


def make_celery(redis_url: str, visibility_timeout_s: int) -> Celery:
    """Return an app whose messages are JSON and acknowledged when done, and whose results are in the ledger instead."""
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
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_send_task_events=True,
        task_send_sent_event=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_pool_limit=4,
        broker_transport_options={
            "visibility_timeout": visibility_timeout_s,
            "unacked_restore_interval": 2,
            "unacked_restore_throttle": 1,
            "health_check_interval": 10,
            "socket_timeout": SOCKET_TIMEOUT_S,
            "socket_connect_timeout": CONNECT_TIMEOUT_S,
            "socket_keepalive": not redis_url.startswith("redis+socket"),
        },
    )
    return app


class CeleryDispatcher:
    """Wakes workers."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def wake(self, count: int) -> int:
        """Queue a message for each of `count` units, MOST_AT_ONCE at most; return how many.

        Raises kombu's OperationalError when the broker is away.
        """
        policy = {"max_retries": 2, "interval_start": 0.1, "interval_step": 0.3, "interval_max": 1.0}
        with self._app.producer_or_acquire() as producer:
            sent = min(count, MOST_AT_ONCE)
            for _ in range(sent):
                self._app.send_task(WORK_TASK, producer=producer, retry=True, retry_policy=policy)
        return sent
