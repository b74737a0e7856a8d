"""The end of a job: records in order to records.jsonl, their scores to summary.json, summary.md and report.html."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from infra.contract.errors import InternalError, UnavailableError
from infra.runtime.logs import get_logger
from orchestrator.evaluation import job_metrics
from orchestrator.evaluation.datasets import BadRow
from orchestrator.evaluation.html.samples import PictureBudget
from orchestrator.evaluation.job import Evaluation, EvaluationState
from orchestrator.evaluation.job_folder import write_records, write_report
from orchestrator.evaluation.ledger import Ledger
from orchestrator.evaluation.ledger_scripts import FINISH
from orchestrator.evaluation.ledger_types import Claim, Lease
from orchestrator.evaluation.records import Record
from orchestrator.evaluation.summarize import summarize
from orchestrator.evaluation.summary import DatasetFile, JobFacts, ScoringOptions
from orchestrator.event_loop import in_background

log = get_logger(__name__)

RETRY_PAUSE_S = 3.0

_BAD_ROWS = TypeAdapter(tuple[BadRow, ...])
_FILES = TypeAdapter(tuple[DatasetFile, ...])


class Finish:
    """Ends jobs. Doing it again, by this worker or another, writes the same files and ends the job once.

    Images of samples are shown in the page where they lie below `roots`; without roots none is.
    """

    def __init__(self, ledger: Ledger, roots: Sequence[Path] = ()) -> None:
        self._ledger = ledger
        self._pictures = PictureBudget(tuple(roots))

    async def run(self, evaluation_id: str) -> None:
        """Write the files of a job whose samples are all recorded, and end it.

        What goes wrong is tried again a few times (the reconciler sends it), then the job fails and says why; its
        records stay in Redis.
        """
        owner = uuid.uuid4().hex
        claim = await self._ledger.claim(evaluation_id, FINISH, owner)
        if claim in (Claim.HELD, Claim.OVER):
            return
        try:
            async with in_background(self._keep_up(evaluation_id, owner)):
                state = await self._write(evaluation_id)
        except Exception as error:
            log.exception("report failed", evaluation_id=evaluation_id)
            if claim is Claim.EXHAUSTED:
                said = f"the report could not be written: {type(error).__name__}: {error}"
                await self._conclude(evaluation_id, EvaluationState.FAILED, said)
            else:
                await self._ledger.release(evaluation_id, FINISH, owner, delay_s=RETRY_PAUSE_S, count_attempt=True)
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
        found = await self._ledger.records(evaluation_id)
        order = await self._ledger.keys_in_order(evaluation_id)
        records = [found[key] for key in order if key in found]
        if not cancelled and len(records) != job.total_samples:
            raise InternalError(f"{job.total_samples - len(records)} samples of {job.total_samples} have no record")
        bad_rows, provenance = await self._ledger.details(evaluation_id)
        await asyncio.to_thread(_write_files, job, state, records, bad_rows, provenance, pictures=self._pictures)
        return state

    async def _keep_up(self, evaluation_id: str, owner: str) -> None:
        lease = Lease.HELD
        while lease is not Lease.LOST:
            await asyncio.sleep(self._ledger.limits.lease_s / 4)
            with suppress(UnavailableError):
                lease = await self._ledger.renew(evaluation_id, FINISH, owner)


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
