"""Looks after work that nobody was woken for: a worker died, a message was lost, a server stopped in between."""

from __future__ import annotations

import asyncio
import time

from infra.runtime.logs import get_logger
from orchestrator.jobs import metrics as job_metrics
from orchestrator.jobs.ledger.ledger import Ledger
from orchestrator.jobs.service import Dispatcher

log = get_logger(__name__)

WAKE_TIMEOUT_S = 60.0


class Reconciler:
    """Keeps as many messages in the queue as there are units to take.

    Messages are all alike, so that one that is lost is missed only where the queue runs dry. Those that a worker is
    just taking are in neither count: what is missing has to be missing for `resend_s` before it is sent, and one
    message too many does nothing.
    """

    def __init__(self, ledger: Ledger, dispatcher: Dispatcher, queue: str, resend_s: float) -> None:
        self._ledger = ledger
        self._dispatcher = dispatcher
        self._queue = queue
        self._resend_s = resend_s
        self._missing = 0
        self._since = 0.0

    async def reconcile(self) -> int:
        """Wake workers for what has been missing long enough; return for how many units."""
        backlog = await self._ledger.units.backlog()
        queued = await self._ledger.units.queue_length(self._queue)
        job_metrics.active_jobs.set(backlog.jobs)
        job_metrics.queued_units.set(backlog.waiting)
        job_metrics.running_units.set(backlog.held)
        job_metrics.live_workers.set(await self._ledger.workers.alive())
        missing = max(0, backlog.waiting - queued)
        if not self._missing or not missing:
            self._since = time.monotonic()
        self._missing = min(missing, self._missing or missing)
        if not self._missing or time.monotonic() - self._since < self._resend_s:
            return 0
        missing, self._missing = self._missing, 0
        log.warning("waking workers for units that nobody took", units=missing)
        async with asyncio.timeout(WAKE_TIMEOUT_S):
            sent = await asyncio.to_thread(self._dispatcher.wake, missing)
        job_metrics.units_resent_total.inc(sent)
        return sent

    async def reconcile_forever(self, interval_s: float) -> None:
        """Reconcile every `interval_s` until cancelled; what goes wrong is logged and tried again."""
        while True:
            await asyncio.sleep(interval_s)
            try:
                await self.reconcile()
            except Exception:
                log.exception("reconciling failed")
