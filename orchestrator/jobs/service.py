"""Evaluation jobs as callers see them: create, get, list, watch, cancel, retry, delete, read the report."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Protocol

from infra.contract.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, OverloadedError
from infra.runtime.logs import get_logger
from orchestrator.evaluation.job import Evaluation, EvaluationPage, EvaluationState, Report
from orchestrator.evaluation.report.output_files import SUMMARY_JSON_FILE, SUMMARY_MARKDOWN_FILE
from orchestrator.evaluation.spec import EvaluationSpec
from orchestrator.evaluation.storage import read_text
from orchestrator.jobs import metrics as job_metrics
from orchestrator.jobs.ledger.ledger import Ledger
from orchestrator.jobs.ledger.replies import Cancellation
from orchestrator.jobs.planning import JobOptions, plan_job
from orchestrator.jobs.provenance import System

log = get_logger(__name__)

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 500

# `claim` and `sweep` visit every active job in one script, during which Redis serves nothing else.
MAX_ACTIVE_JOBS = 500

_WATCH_INTERVAL_S = 0.25  # A watch polls Redis with one HMGET; shorter than a person notices.
_MAX_REPORT_CHARACTERS = 24 * 2**20  # Up to four bytes a character in UTF-8; the default message limit is 64 MiB.
_NO_WORKER = "no worker is running; start one with 'loraretriever worker'"


class Dispatcher(Protocol):
    """Wakes workers: orchestrator.jobs.celery.CeleryDispatcher."""

    def wake(self, count: int) -> int:
        """Wake workers for `count` units of work; return for how many of them. May block, and may raise anything."""


class EvaluationJobs:
    """The jobs of a ledger."""

    def __init__(self, ledger: Ledger, dispatcher: Dispatcher, options: JobOptions, system: System) -> None:
        self._ledger = ledger
        self._dispatcher = dispatcher
        self._options = options
        self._system = system

    async def create(self, spec: EvaluationSpec, request_id: str = "") -> Evaluation:
        """Plan a job, publish it and wake workers; return the job that `request_id` started before, if any.

        Raises:
            InvalidArgumentError: a dataset cannot be read, or the job is too large.
            NotFoundError: a dataset does not exist.
            FailedPreconditionError: a dataset has another content, or the catalogue lacks an adapter, than the spec
                says.
            AlreadyExistsError: the request id started a job of another spec.
            OverloadedError: too many jobs have not ended.
        """
        known = await self._ledger.jobs.find_request(request_id, spec)
        if known is not None:
            return await self.get(known)
        await self._check_active_jobs()
        job = await plan_job(spec, self._options, self._system)
        evaluation_id = await self._ledger.jobs.publish(job, request_id, spec)
        await self._wake(len(job.shards))
        log.info("evaluation_created", evaluation_id=evaluation_id, samples=job.total_samples, shards=len(job.shards))
        return await self.get(evaluation_id)

    async def get(self, evaluation_id: str) -> Evaluation:
        """Return a job, with the reason if it is stalled because no worker is alive. Raises NotFoundError."""
        return await self._with_stall_reason(await self._ledger.jobs.get(evaluation_id))

    async def page(self, page_size: int = 0, page_token: str = "") -> EvaluationPage:
        """Return a page of jobs, newest first; `page_size` 0 is DEFAULT_PAGE_SIZE."""
        if page_size < 0:
            raise InvalidArgumentError("page_size", f"must not be negative, got {page_size}")
        return await self._ledger.jobs.page(min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE), page_token)

    async def watch(self, evaluation_id: str) -> AsyncIterator[Evaluation]:
        """Yield a job now and at every change, until it has ended. Raises NotFoundError."""
        job = await self.get(evaluation_id)
        yield job
        while not job.state.ended:
            await asyncio.sleep(_WATCH_INTERVAL_S)
            before, job = job, await self._with_stall_reason(await self._ledger.jobs.refresh(job))
            if job != before:
                yield job

    async def cancel(self, evaluation_id: str) -> Evaluation:
        """Cancel a job: samples under way end, no other is begun. A job that has ended stays as it is."""
        match await self._ledger.jobs.cancel(evaluation_id):
            case Cancellation.REPORT_DUE:
                await self._wake(1)
            case Cancellation.CANCELLED:
                job_metrics.jobs_total.labels(EvaluationState.CANCELLED.value).inc()
            case Cancellation.FAILED:
                job_metrics.jobs_total.labels(EvaluationState.FAILED.value).inc()
            case Cancellation.PENDING | Cancellation.ENDED:
                pass
        return await self.get(evaluation_id)

    async def retry(self, evaluation_id: str) -> Evaluation:
        """Write the report of a failed job again, or a postponed report at once.

        Raises:
            NotFoundError: there is no such job.
            FailedPreconditionError: the job has no failed or postponed report.
        """
        await self._ledger.jobs.retry_report(evaluation_id)
        await self._wake(1)
        return await self.get(evaluation_id)

    async def delete(self, evaluation_id: str) -> None:
        """Delete a job that has ended; its files stay.

        Raises:
            NotFoundError: there is no such job.
            FailedPreconditionError: the job has not ended.
        """
        await self._ledger.jobs.delete(evaluation_id)

    async def report(self, evaluation_id: str) -> Report:
        """Return the report of a job that has ended.

        Raises:
            NotFoundError: there is no such job, or its files are gone.
            FailedPreconditionError: the job has no report, or it is too large for a message.
        """
        job = await self._ledger.jobs.get(evaluation_id)
        _check_has_ended_well(job)
        try:
            summary_json = await asyncio.to_thread(read_text, job.output_uri, SUMMARY_JSON_FILE)
            summary_markdown = await asyncio.to_thread(read_text, job.output_uri, SUMMARY_MARKDOWN_FILE)
        except NotFoundError:
            if job.done_samples:
                raise
            raise FailedPreconditionError(
                f"evaluation {evaluation_id} was cancelled before any sample was answered; there is nothing to report"
            ) from None
        if len(summary_json) + len(summary_markdown) > _MAX_REPORT_CHARACTERS:
            raise FailedPreconditionError(
                f"the report of evaluation {evaluation_id} is too large for a message; read it at {job.output_uri}"
            )
        return Report(summary_json, summary_markdown, job.output_uri)

    async def _check_active_jobs(self) -> None:
        active = len(await self._ledger.jobs.active())
        if active >= MAX_ACTIVE_JOBS:
            raise OverloadedError(
                f"{active} evaluations have not ended; at most {MAX_ACTIVE_JOBS} may run at a time: "
                "wait, or cancel some",
                active=str(active),
            )

    async def _with_stall_reason(self, job: Evaluation) -> Evaluation:
        if job.state.ended or job.stalled or await self._ledger.workers.count():
            return job
        return replace(job, stalled=_NO_WORKER)

    async def _wake(self, count: int) -> None:
        """Wake workers. While the broker is away this is left to the reconciler: the ledger has the job already."""
        try:
            await asyncio.to_thread(self._dispatcher.wake, count)
        except Exception as error:
            log.warning("wake_failed", units=count, reason=str(error))


def _check_has_ended_well(job: Evaluation) -> None:
    if not job.state.ended:
        raise FailedPreconditionError(
            f"evaluation {job.evaluation_id} is {job.state.value} ({job.done_samples} of {job.total_samples} samples); "
            "its report is written when it ends",
            evaluation_id=job.evaluation_id,
            state=job.state.value,
        )
    if job.state is EvaluationState.FAILED:
        raise FailedPreconditionError(
            f"evaluation {job.evaluation_id} failed and has no report: {job.error}. Its records are kept: "
            "retry it once the cause is fixed",
            evaluation_id=job.evaluation_id,
            state=job.state.value,
        )
