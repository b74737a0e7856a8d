"""Wakes workers for units that none was woken for: a worker died, a message was lost, an orchestrator was killed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from infra.runtime.logs import get_logger
from orchestrator.jobs import metrics as job_metrics
from orchestrator.jobs.ledger.ledger import Ledger
from orchestrator.jobs.ledger.types import Backlog
from orchestrator.jobs.service import Dispatcher

log = get_logger(__name__)

_WAKE_TIMEOUT_S = 60.0  # A broker that never replies must not stop the gauges for longer.


class Reconciler:
    """Keeps as many messages in the queue as there are units to claim.

    Messages are all alike, so a lost one is missed only as a difference of two counts. A message that a worker is just
    taking is in neither: a difference must last for `resend_s` before messages are sent. One too many does nothing.
    """

    def __init__(
        self, ledger: Ledger, dispatcher: Dispatcher, queue_length: Callable[[], Awaitable[int]], resend_s: float
    ) -> None:
        self._ledger = ledger
        self._dispatcher = dispatcher
        self._queue_length = queue_length
        self._resend_s = resend_s
        self._missing = 0
        self._missing_since = 0.0

    async def reconcile(self) -> int:
        """Set the gauges, and wake workers for units that have been missing long enough; return for how many."""
        backlog = await self._ledger.backlog()
        queued = await self._queue_length()
        # The two counts are not taken at the same time: a unit claimed in between is missing only for a moment.
        _set_gauges(backlog, await self._ledger.workers.count())
        missing = self._missing_for_long(max(0, backlog.waiting - queued))
        if not missing:
            return 0
        log.warning("units_resent", units=missing)
        async with asyncio.timeout(_WAKE_TIMEOUT_S):
            sent = await asyncio.to_thread(self._dispatcher.wake, missing)
        job_metrics.units_resent_total.inc(sent)
        return sent

    async def reconcile_forever(self, interval_s: float) -> None:
        """Reconcile every `interval_s` until cancelled. Failures are logged and tried again."""
        while True:
            await asyncio.sleep(interval_s)
            try:
                await self.reconcile()
            except Exception:
                log.exception("reconcile_failed")

    def _missing_for_long(self, missing: int) -> int:
        """Return the fewest messages missing at any time of the last `resend_s`; 0 before that time has passed."""
        if not self._missing or not missing:
            self._missing_since = time.monotonic()
        self._missing = min(missing, self._missing or missing)
        if not self._missing or time.monotonic() - self._missing_since < self._resend_s:
            return 0
        missing, self._missing = self._missing, 0
        return missing


def _set_gauges(backlog: Backlog, live_workers: int) -> None:
    job_metrics.active_jobs.set(backlog.jobs)
    job_metrics.queued_units.set(backlog.waiting)
    job_metrics.running_units.set(backlog.held)
    job_metrics.live_workers.set(live_workers)
