"""The Celery task: thin. It wakes a worker; the ledger says what there is to do and remembers what came of it."""

from __future__ import annotations

from typing import Protocol

from celery import Celery

from orchestrator.jobs.celery import WORK_TASK


class Carrier(Protocol):
    """What carries out units of work: orchestrator.jobs.worker.Worker. Called on Celery's threads."""

    def work(self) -> str:
        """Do what is most due; return a few words on what it was."""


def register_tasks(app: Celery, carrier: Carrier) -> None:
    """Make the app's workers hand their messages to `carrier`. What was done is in Celery's events."""

    @app.task(name=WORK_TASK)  # type: ignore[untyped-decorator]
    def work() -> str:
        return carrier.work()
