"""The Celery tasks: thin. They name the work; the ledger says what it is and remembers what came of it."""

from __future__ import annotations

from typing import Protocol

from celery import Celery

from orchestrator.celery_app import FINISH_TASK, SHARD_TASK


class Carrier(Protocol):
    """What carries out units of work: orchestrator.worker.Worker. Called on Celery's threads."""

    def carry_out_shard(self, evaluation_id: str, shard: str) -> None:
        """Answer the samples of a shard."""

    def finish(self, evaluation_id: str) -> None:
        """Write the report of a job and end it."""


def register_tasks(app: Celery, carrier: Carrier) -> None:
    """Make the app's workers hand their messages to `carrier`."""

    @app.task(name=SHARD_TASK)  # type: ignore[untyped-decorator]
    def shard(evaluation_id: str, unit: str) -> None:
        carrier.carry_out_shard(evaluation_id, unit)

    @app.task(name=FINISH_TASK)  # type: ignore[untyped-decorator]
    def finish(evaluation_id: str) -> None:
        carrier.finish(evaluation_id)
