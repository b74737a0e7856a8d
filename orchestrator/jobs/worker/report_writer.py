"""Ends a job: writes records.jsonl, summary.json, summary.md and report.html, then marks the job as ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path

from pydantic import TypeAdapter

from infra.contract.errors import InternalError, LoraRetrieverError, UnavailableError
from infra.runtime.logs import get_logger
from orchestrator.evaluation.data.datasets import BadRow
from orchestrator.evaluation.job import Evaluation, EvaluationState
from orchestrator.evaluation.records import Record
from orchestrator.evaluation.report.html.samples import ThumbnailBudget
from orchestrator.evaluation.report.output_files import write_records, write_report
from orchestrator.evaluation.report.summarize import summarize
from orchestrator.evaluation.report.summary import DatasetFile, JobFacts, ScoringOptions
from orchestrator.jobs import metrics as job_metrics
from orchestrator.jobs.event_loop import ThreadNotStartedError, in_background, on_own_thread
from orchestrator.jobs.ledger.ledger import Ledger
from orchestrator.jobs.ledger.replies import Postponement
from orchestrator.jobs.ledger.types import Claim, JobDetails
from orchestrator.jobs.provenance import RunningSystem
from orchestrator.jobs.worker.isolation import Isolation, StoppedWaitingError
from orchestrator.jobs.worker.shard_lease import RENEWALS_PER_LEASE, renew, retry_while_unavailable

log = get_logger(__name__)

TIME_LIMIT_S = 3600.0  # Far above the time of the largest report; a storage that hangs must not hold it for ever.
_ALONE_TIME_LIMIT_S = 600.0  # Shorter: meanwhile the worker answers no sample.
_PATIENCE_WITH_DEFECTS_S = 30.0  # An error of the program is tried again only briefly: it will not go away.

_BAD_ROWS = TypeAdapter(tuple[BadRow, ...])
_FILES = TypeAdapter(tuple[DatasetFile, ...])
_SYSTEM = TypeAdapter(RunningSystem)


WriteFiles = Callable[[Evaluation, EvaluationState, list[Record], JobDetails], None]
"""Writes the files of a job. Called on: a thread."""


class _StoppedError(Exception):
    """The worker stops, and the grace for this report is over."""


class ReportWriter:
    """Writes reports and ends their jobs. Repeating it, here or elsewhere, writes the same files and ends a job once.

    The HTML report shows images of samples that are below `roots`.

    Called on: the worker's event loop; files are written on threads.
    """

    def __init__(
        self,
        ledger: Ledger,
        roots: Sequence[Path],
        isolation: Isolation,
        stop_grace_s: float = 10.0,
        write_files: WriteFiles | None = None,
    ) -> None:
        self._ledger = ledger
        self._write_files = write_files or partial(_write_files, ThumbnailBudget(tuple(roots)))
        self._isolation = isolation
        self._stop_grace_s = stop_grace_s
        self._writing: set[str] = set()
        """Jobs whose files a thread writes. Changed on the loop and on those threads; a set's add and discard are
        atomic."""

    async def run(self, claim: Claim, stopping: asyncio.Event) -> bool:
        """Write the files of a job and end it; return False if another worker must do it.

        A failure is tried again with growing pauses, for long if the storage is away; then the job fails with the
        reason, and its records stay in Redis. A report whose writing ended its worker is tried alone in the next one,
        and a few times only. Once `stopping` is set the report has the grace of a stop, then it is released.
        """
        async with in_background(self._renew_forever(claim)):
            if claim.exhausted:
                attempts = self._ledger.limits.report_attempts
                error = f"given up: the worker ended {attempts} times while it wrote the report"
                await self._conclude(claim, stopping, EvaluationState.FAILED, error)
                return True
            try:
                state = await self._write_within_grace(claim, stopping)
            except _StoppedError:
                return not await retry_while_unavailable(lambda: self._ledger.release(claim), stopping.is_set)
            except Exception as error:
                await self._postpone(claim, stopping, error)
            else:
                await self._conclude(claim, stopping, state)
        return True

    async def _write_within_grace(self, claim: Claim, stopping: asyncio.Event) -> EvaluationState:
        """Write the files; return how the job ends. Raises _StoppedError when the grace of a stop is over."""
        # A first attempt that ended its worker may do so again, and must not take samples along.
        alone = claim.attempts > 1
        writing = asyncio.create_task(self._write_in_time(claim.evaluation_id, stopping, alone=alone))
        grace = asyncio.create_task(self._grace_over(stopping))
        try:
            await asyncio.wait((writing, grace), return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                return writing.result()
            raise _StoppedError
        finally:
            writing.cancel()
            grace.cancel()

    async def _grace_over(self, stopping: asyncio.Event) -> None:
        await stopping.wait()
        await asyncio.sleep(self._stop_grace_s)

    async def _write_in_time(self, evaluation_id: str, stopping: asyncio.Event, *, alone: bool) -> EvaluationState:
        limit_s = _ALONE_TIME_LIMIT_S if alone else TIME_LIMIT_S
        try:
            # The time limit begins after the wait to be alone.
            async with self._isolation.alone(stopping) if alone else nullcontext(), asyncio.timeout(limit_s):
                return await self._write(evaluation_id)
        except TimeoutError as error:
            raise UnavailableError(f"it was not written within {limit_s:g} s; is the storage there?") from error
        except StoppedWaitingError as error:
            raise _StoppedError from error

    async def _write(self, evaluation_id: str) -> EvaluationState:
        job = await self._ledger.jobs.get(evaluation_id)
        cancelled = await self._ledger.jobs.is_cancelled(evaluation_id)
        state = EvaluationState.CANCELLED if cancelled else EvaluationState.SUCCEEDED
        records = await self._ledger.samples.in_order(evaluation_id)
        if not cancelled and len(records) != job.total_samples:
            raise InternalError(f"{job.total_samples - len(records)} samples of {job.total_samples} have no record")
        details = await self._ledger.jobs.details(evaluation_id)
        write = partial(self._write_files, job, state, records, details)
        await self._on_own_thread(write, evaluation_id)
        return state

    async def _on_own_thread(self, write: Callable[[], None], evaluation_id: str) -> None:
        """Write on its own thread. One that hangs ends at the time limit of its try; a second is not started."""
        if evaluation_id in self._writing:
            raise UnavailableError("an earlier try has not ended yet; is the storage there?")
        self._writing.add(evaluation_id)

        def write_and_discard() -> None:
            try:
                write()
            finally:
                self._writing.discard(evaluation_id)

        try:
            await on_own_thread(write_and_discard)
        except ThreadNotStartedError:
            self._writing.discard(evaluation_id)
            raise

    async def _postpone(self, claim: Claim, stopping: asyncio.Event, error: Exception) -> None:
        log.error("report_failed", evaluation_id=claim.evaluation_id, exc_info=error)
        reason = error.message if isinstance(error, LoraRetrieverError) else f"{type(error).__name__}: {error}"
        may_pass = isinstance(error, UnavailableError | OSError)
        patience_s = self._ledger.limits.report_patience_s if may_pass else _PATIENCE_WITH_DEFECTS_S
        postponement = await retry_while_unavailable(
            lambda: self._ledger.postpone_report(claim, reason, patience_s), stopping.is_set
        )
        if postponement is Postponement.OVER:
            failure = f"the report could not be written: {reason}"
            await self._conclude(claim, stopping, EvaluationState.FAILED, failure)

    async def _conclude(self, claim: Claim, stopping: asyncio.Event, state: EvaluationState, error: str = "") -> None:
        evaluation_id = claim.evaluation_id
        conclude = partial(self._ledger.jobs.conclude, evaluation_id, state, error)
        if await retry_while_unavailable(conclude, stopping.is_set):
            job_metrics.jobs_total.labels(state.value).inc()
            log.info("evaluation_ended", evaluation_id=evaluation_id, state=state.value)

    async def _renew_forever(self, claim: Claim) -> None:
        while True:
            await asyncio.sleep(self._ledger.limits.lease_s / RENEWALS_PER_LEASE)
            # A lost lease changes nothing: two writers write the same files.
            await renew(self._ledger, claim, lambda _: None)


def _write_files(
    pictures: ThumbnailBudget, job: Evaluation, state: EvaluationState, records: list[Record], details: JobDetails
) -> None:
    provenance = details.provenance
    facts = JobFacts(
        spec=job.spec,
        evaluation_id=job.evaluation_id,
        state=state.value,
        planned_samples=job.total_samples,
        files=_FILES.validate_python(provenance.get("files", [])),
        bad_rows=_BAD_ROWS.validate_python(details.bad_rows),
        version=provenance.get("version", ""),
        **asdict(_SYSTEM.validate_python(provenance.get("system", {}))),
    )
    options = ScoringOptions(job.spec.legacy_threshold, job.spec.point_tolerance_px)
    summary = summarize(records, facts, options, bad_row_count=job.bad_rows)
    write_records(job.output_uri, records, summary.scoring)
    write_report(job.output_uri, summary, records, pictures)
