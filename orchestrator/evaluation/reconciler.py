"""Looks after jobs that stand still: a worker died, a message was lost, a server stopped before it had sent all."""

from __future__ import annotations

import asyncio

from infra.runtime.logs import get_logger
from orchestrator.evaluation import job_metrics
from orchestrator.evaluation.jobs import Dispatcher
from orchestrator.evaluation.ledger import Ledger

log = get_logger(__name__)


async def reconcile(ledger: Ledger, dispatcher: Dispatcher, queue: str) -> int:
    """Send again every unit that is overdue; return how many. Several servers may do it: each unit goes once."""
    sent = 0
    active = await ledger.active()
    queued = await ledger.queue_length(queue)
    job_metrics.active_jobs.set(len(active))
    job_metrics.queued_units.set(queued)
    job_metrics.running_units.set(sum([await ledger.held(evaluation_id) for evaluation_id in active]))
    job_metrics.live_workers.set(await ledger.workers.alive())
    for evaluation_id in active:
        units = await ledger.overdue(evaluation_id, queue_empty=queued == 0)
        if units:
            log.warning("units sent again", evaluation_id=evaluation_id, units=units)
            await asyncio.to_thread(dispatcher.send, evaluation_id, units)
            sent += len(units)
    job_metrics.units_resent_total.inc(sent)
    return sent


async def reconcile_forever(ledger: Ledger, dispatcher: Dispatcher, queue: str, interval_s: float) -> None:
    """Reconcile every `interval_s` until cancelled; what goes wrong is logged and tried again."""
    while True:
        await asyncio.sleep(interval_s)
        try:
            await reconcile(ledger, dispatcher, queue)
        except Exception:
            log.exception("reconciling failed")
