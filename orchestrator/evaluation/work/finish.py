"""The end of a job: records in order to records.jsonl, their scores to summary.json, summary.md and report.html."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from infra.contract.errors import InternalError, LoraRetrieverError, UnavailableError
from infra.runtime.logs import get_logger
from orchestrator.evaluation import job_metrics
from orchestrator.evaluation.data.datasets import BadRow
from orchestrator.evaluation.job import Evaluation, EvaluationState
from orchestrator.evaluation.ledger.ledger import Ledger
from orchestrator.evaluation.ledger.types import Taken
from orchestrator.evaluation.ledger.units import Postponed
from orchestrator.evaluation.records import Record
from orchestrator.evaluation.report.html.samples import PictureBudget
from orchestrator.evaluation.report.job_folder import write_records, write_report
from orchestrator.evaluation.report.summarize import summarize
from orchestrator.evaluation.report.summary import DatasetFile, JobFacts, ScoringOptions
from orchestrator.evaluation.work.hold import keep
from orchestrator.evaluation.work.isolation import Isolation
from orchestrator.event_loop import in_background

log = get_logger(__name__)

TIME_LIMIT_S = 3600.0
PATIENCE_WITH_DEFECTS_S = 30.0

_BAD_ROWS = TypeAdapter(tuple[BadRow, ...])
_FILES = TypeAdapter(tuple[DatasetFile, ...])


class Finish:
    """Ends jobs. Doing it again, by this worker or another, writes the same files and ends the job once.

    Images of samples are shown in the page where they lie below `roots`; without roots none is.
    """

    def __init__(self, ledger: Ledger, roots: Sequence[Path], isolation: Isolation) -> None:
        self._ledger = ledger
        self._pictures = PictureBudget(tuple(roots))
        self._isolation = isolation

    async def run(self, taken: Taken) -> None:
        """Write the files of a job whose samples are all recorded, and end it.

        What goes wrong is tried again with growing pauses, for long where a storage is away; then the job fails and
        says why, and its records stay in Redis. A report whose writing ended its worker is tried alone in the next, and
        a few times only.
        """
        evaluation_id = taken.evaluation_id
        if taken.exhausted:
            times = self._ledger.limits.finish_attempts
            said = f"given up: the worker ended {times} times while it wrote the report"
            await self._conclude(evaluation_id, EvaluationState.FAILED, said)
            return
        try:
            beside = self._isolation.alone() if taken.attempts > 1 else self._isolation.together()
            async with asyncio.timeout(TIME_LIMIT_S), in_background(self._keep_up(taken)), beside:
                state = await self._write(evaluation_id)
        except Exception as error:
            log.exception("report failed", evaluation_id=evaluation_id)
            said = error.message if isinstance(error, LoraRetrieverError) else f"{type(error).__name__}: {error}"
            passes = isinstance(error, UnavailableError | OSError)
            patience_s = self._ledger.limits.report_patience_s if passes else PATIENCE_WITH_DEFECTS_S
            if await self._ledger.units.postpone(taken, said, patience_s) is Postponed.OVER:
                await self._conclude(evaluation_id, EvaluationState.FAILED, f"the report could not be written: {said}")
            return
        await self._conclude(evaluation_id, state)

    async def _conclude(self, evaluation_id: str, state: EvaluationState, error: str = "") -> None:
        if await self._ledger.conclude(evaluation_id, state, error):
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
        await asyncio.to_thread(_write_files, job, state, records, bad_rows, provenance, pictures=self._pictures)
        return state

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
    pictures: PictureBudget,
) -> None:
    facts = JobFacts(
        spec=job.spec,
        evaluation_id=job.evaluation_id,
        state=state.value,
        planned_samples=job.total_samples,
        files=_FILES.validate_python(provenance.get("files", [])),
        bad_rows=_BAD_ROWS.validate_python(bad_rows),
        version=provenance.get("version", ""),
        **provenance.get("system", {}),
    )
    options = ScoringOptions(job.spec.legacy_threshold, job.spec.point_tolerance_px)
    summary = summarize(records, facts, options, bad_row_count=job.bad_rows)
    write_records(job.output_uri, records, summary.scoring)
    write_report(job.output_uri, summary, records, pictures)
