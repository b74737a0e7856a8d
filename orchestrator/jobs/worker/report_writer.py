"""The end of a job: records in order to records.jsonl, their scores to summary.json, summary.md and report.html."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from infra.contract.errors import InternalError, LoraRetrieverError, UnavailableError
from infra.runtime.logs import get_logger
from orchestrator.evaluation.data.datasets import BadRow
from orchestrator.evaluation.records import Record
from orchestrator.evaluation.report.html.samples import ThumbnailBudget
from orchestrator.evaluation.report.output_files import write_records, write_report
from orchestrator.evaluation.report.summarize import summarize
from orchestrator.evaluation.report.summary import DatasetFile, JobFacts, ScoringOptions
from orchestrator.jobs import metrics as job_metrics
from orchestrator.jobs.event_loop import ThreadNotStartedError, in_background, on_own_thread
from orchestrator.jobs.job import Evaluation, EvaluationState
from orchestrator.jobs.ledger.ledger import Ledger
from orchestrator.jobs.ledger.types import Taken
from orchestrator.jobs.ledger.units import Postponed
from orchestrator.jobs.provenance import RunningSystem
from orchestrator.jobs.worker.isolation import Isolation, StoppedWaitingError
from orchestrator.jobs.worker.shard_lease import insist, keep

log = get_logger(__name__)

TIME_LIMIT_S = 3600.0
ALONE_TIME_LIMIT_S = 600.0
PATIENCE_WITH_DEFECTS_S = 30.0

_BAD_ROWS = TypeAdapter(tuple[BadRow, ...])
_FILES = TypeAdapter(tuple[DatasetFile, ...])
_SYSTEM = TypeAdapter(RunningSystem)


class _HandedOnError(Exception):
    pass


class Finish:
    """Ends jobs. Doing it again, by this worker or another, writes the same files and ends the job once.

    Images of samples are shown in the page where they lie below `roots`; without roots none is.
    """

    def __init__(self, ledger: Ledger, roots: Sequence[Path], isolation: Isolation, stop_grace_s: float = 10.0) -> None:
        self._ledger = ledger
        self._pictures = ThumbnailBudget(tuple(roots))
        self._isolation = isolation
        self._stop_grace_s = stop_grace_s
        self._writing: set[str] = set()

    async def run(self, taken: Taken, stopping: asyncio.Event) -> bool:
        """Write the files of a job whose samples are all recorded, and end it; False where another worker must.

        What goes wrong is tried again with growing pauses, for long where a storage is away; then the job fails and
        says why, and its records stay in Redis. A report whose writing ended its worker is tried alone in the next, and
        a few times only. Once `stopping` is set it has the grace of a stop, and is handed on.
        """
        async with in_background(self._keep_up(taken)):
            if taken.exhausted:
                times = self._ledger.limits.finish_attempts
                said = f"given up: the worker ended {times} times while it wrote the report"
                await self._conclude(taken, stopping, EvaluationState.FAILED, said)
                return True
            try:
                state = await self._written(taken, stopping)
            except _HandedOnError:
                return not await insist(lambda: self._ledger.units.release(taken), stopping.is_set)
            except Exception as error:
                await self._put_off(taken, stopping, error)
            else:
                await self._conclude(taken, stopping, state)
        return True

    async def _written(self, taken: Taken, stopping: asyncio.Event) -> EvaluationState:
        """Return how the job ends, its files written. Raises _HandedOnError when the grace of a stop is over."""
        alone = taken.attempts > 1
        writing = asyncio.create_task(self._write_beside(taken.evaluation_id, stopping, alone=alone))
        grace = asyncio.create_task(self._grace(stopping))
        try:
            await asyncio.wait((writing, grace), return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                return writing.result()
            raise _HandedOnError
        finally:
            writing.cancel()
            grace.cancel()

    async def _grace(self, stopping: asyncio.Event) -> None:
        await stopping.wait()
        await asyncio.sleep(self._stop_grace_s)

    async def _write_beside(self, evaluation_id: str, stopping: asyncio.Event, *, alone: bool) -> EvaluationState:
        limit_s = ALONE_TIME_LIMIT_S if alone else TIME_LIMIT_S
        try:
            async with self._isolation.alone(stopping) if alone else nullcontext(), asyncio.timeout(limit_s):
                return await self._write(evaluation_id)
        except TimeoutError as error:
            raise UnavailableError(f"it was not written within {limit_s:g} s; is the storage there?") from error
        except StoppedWaitingError as error:
            raise _HandedOnError from error

    async def _put_off(self, taken: Taken, stopping: asyncio.Event, error: Exception) -> None:
        log.error("report failed", evaluation_id=taken.evaluation_id, exc_info=error)
        said = error.message if isinstance(error, LoraRetrieverError) else f"{type(error).__name__}: {error}"
        passes = isinstance(error, UnavailableError | OSError)
        patience_s = self._ledger.limits.report_patience_s if passes else PATIENCE_WITH_DEFECTS_S
        postponed = await insist(lambda: self._ledger.units.postpone(taken, said, patience_s), stopping.is_set)
        if postponed is Postponed.OVER:
            said = f"the report could not be written: {said}"
            await self._conclude(taken, stopping, EvaluationState.FAILED, said)

    async def _conclude(self, taken: Taken, stopping: asyncio.Event, state: EvaluationState, error: str = "") -> None:
        evaluation_id = taken.evaluation_id
        if await insist(lambda: self._ledger.conclude(evaluation_id, state, error), stopping.is_set):
            job_metrics.jobs_total.labels(state.value).inc()
            log.info("evaluation ended", evaluation_id=evaluation_id, state=state.value)

    async def _write(self, evaluation_id: str) -> EvaluationState:
        job = await self._ledger.get(evaluation_id)
        cancelled = await self._ledger.is_cancelled(evaluation_id)
        state = EvaluationState.CANCELLED if cancelled else EvaluationState.SUCCEEDED
        records = await self._ledger.samples.in_order(evaluation_id)
        if not cancelled and len(records) != job.total_samples:
            raise InternalError(f"{job.total_samples - len(records)} samples of {job.total_samples} have no record")
        bad_rows, provenance = await self._ledger.details(evaluation_id)
        write = partial(_write_files, job, state, records, bad_rows, provenance, pictures=self._pictures)
        await self._on_own_thread(write, evaluation_id)
        return state

    async def _on_own_thread(self, write: Callable[[], None], evaluation_id: str) -> None:
        """Write on a thread of its own; one that hangs is waited for by the time limit, and not joined by another."""
        if evaluation_id in self._writing:
            raise UnavailableError("an earlier try has not ended yet; is the storage there?")
        self._writing.add(evaluation_id)

        def write_and_tell() -> None:
            try:
                write()
            finally:
                self._writing.discard(evaluation_id)

        try:
            await on_own_thread(write_and_tell)
        except ThreadNotStartedError:
            self._writing.discard(evaluation_id)
            raise

    async def _keep_up(self, taken: Taken) -> None:
        while True:
            await asyncio.sleep(self._ledger.limits.lease_s / 4)
            await keep(self._ledger, taken, lambda lease: None)


def _write_files(
    job: Evaluation,
    state: EvaluationState,
    records: list[Record],
    bad_rows: list[dict[str, Any]],
    provenance: dict[str, Any],
    *,
    pictures: ThumbnailBudget,
) -> None:
    facts = JobFacts(
        spec=job.spec,
        evaluation_id=job.evaluation_id,
        state=state.value,
        planned_samples=job.total_samples,
        files=_FILES.validate_python(provenance.get("files", [])),
        bad_rows=_BAD_ROWS.validate_python(bad_rows),
        version=provenance.get("version", ""),
        **asdict(_SYSTEM.validate_python(provenance.get("system", {}))),
    )
    options = ScoringOptions(job.spec.legacy_threshold, job.spec.point_tolerance_px)
    summary = summarize(records, facts, options, bad_row_count=job.bad_rows)
    write_records(job.output_uri, records, summary.scoring)
    write_report(job.output_uri, summary, records, pictures)
