"""Evaluation jobs as callers see them: create, look, follow, cancel, read the report."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

from infra.contract.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, OverloadedError
from infra.runtime.logs import get_logger
from orchestrator.evaluation.data.datasets import read_datasets
from orchestrator.evaluation.data.files import MAX_DATASET_BYTES, resolve_datasets
from orchestrator.evaluation.planning import DEFAULT_MAX_SAMPLES, plan_samples, split_into_shards
from orchestrator.evaluation.report.output_files import SUMMARY_JSON_FILE, SUMMARY_MARKDOWN_FILE
from orchestrator.evaluation.report.summarize import dataset_files
from orchestrator.evaluation.spec import EvaluationSpec
from orchestrator.evaluation.storage import read_text
from orchestrator.jobs import metrics as job_metrics
from orchestrator.jobs.job import Evaluation, EvaluationPage, EvaluationState, Report
from orchestrator.jobs.ledger.ledger import Ledger
from orchestrator.jobs.ledger.types import Cancellation, NewEvaluation
from orchestrator.jobs.provenance import RunningSystem, System

log = get_logger(__name__)

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 500
WATCH_INTERVAL_S = 0.25
KEPT_BAD_ROWS = 1000
MAX_NAMED = 5
MAX_ACTIVE = 500
MAX_REPORT_CHARACTERS = 24 * 2**20
NO_WORKER = "no worker is running; start one with 'loraretriever worker'"


class Dispatcher(Protocol):
    """What wakes the workers: orchestrator.jobs.celery.CeleryDispatcher. May block, may fail."""

    def wake(self, count: int) -> int:
        """Let workers look for `count` units of work, or for the first of them; return for how many."""


@dataclass(frozen=True)
class JobOptions:
    """Where datasets may lie, where results go, samples a shard where a job does not say, and how large jobs may be."""

    dataset_roots: tuple[Path, ...]
    output_uri: str
    shard_size: int = 40
    max_samples: int = DEFAULT_MAX_SAMPLES
    max_dataset_bytes: int = MAX_DATASET_BYTES


class Evaluations:
    """The jobs of a ledger."""

    def __init__(self, ledger: Ledger, dispatcher: Dispatcher, options: JobOptions, system: System) -> None:
        self._ledger = ledger
        self._dispatcher = dispatcher
        self._options = options
        self._system = system

    async def create(self, spec: EvaluationSpec, request_id: str = "") -> Evaluation:
        """Plan a job, store it, send its shards; the job that `request_id` started before, where there is one.

        Raises InvalidArgumentError, NotFoundError or FailedPreconditionError for datasets that cannot be read or are
        not the content that the job names, or whose adapter the catalogue does not hold; AlreadyExistsError when the
        request id started another job.
        """
        known = await self._ledger.find_request(request_id, spec)
        if known is not None:
            return await self.get(known)
        active = len(await self._ledger.active())
        if active >= MAX_ACTIVE:
            raise OverloadedError(
                f"{active} evaluations have not ended; at most {MAX_ACTIVE} may run at a time: wait, or cancel some",
                active=str(active),
            )
        settled = await asyncio.to_thread(
            resolve_datasets, spec, self._options.dataset_roots, self._options.max_dataset_bytes
        )
        job = await asyncio.to_thread(self._plan, settled, await self._system.running())
        await self._check_true_adapters(job)
        evaluation_id = await self._ledger.publish(job, request_id, spec)
        await self._wake(len(job.shards))
        log.info("evaluation created", evaluation_id=evaluation_id, samples=job.total_samples, shards=len(job.shards))
        return await self.get(evaluation_id)

    async def get(self, evaluation_id: str) -> Evaluation:
        """Return a job, and why it stands still where no worker is alive. Raises NotFoundError."""
        return await self._with_reason(await self._ledger.get(evaluation_id))

    async def _with_reason(self, job: Evaluation) -> Evaluation:
        if job.state.ended or job.stalled or await self._ledger.workers.alive():
            return job
        return replace(job, stalled=NO_WORKER)

    async def page(self, page_size: int = 0, page_token: str = "") -> EvaluationPage:
        """Return a page of jobs, newest first; `page_size` 0 is DEFAULT_PAGE_SIZE."""
        if page_size < 0:
            raise InvalidArgumentError("page_size", f"must not be negative, got {page_size}")
        return await self._ledger.page(min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE), page_token)

    async def watch(self, evaluation_id: str) -> AsyncIterator[Evaluation]:
        """Yield a job now and whenever it moves, until it has ended."""
        job = await self.get(evaluation_id)
        yield job
        while not job.state.ended:
            await asyncio.sleep(WATCH_INTERVAL_S)
            before, job = job, await self._with_reason(await self._ledger.look_again(job))
            if job != before:
                yield job

    async def cancel(self, evaluation_id: str) -> Evaluation:
        """Stop a job: samples under way end, no other is begun. A job that has ended stays as it is."""
        match await self._ledger.cancel(evaluation_id):
            case Cancellation.FINISH:
                await self._wake(1)
            case Cancellation.ENDED:
                job_metrics.jobs_total.labels(EvaluationState.CANCELLED.value).inc()
            case Cancellation.GIVEN_UP:
                job_metrics.jobs_total.labels(EvaluationState.FAILED.value).inc()
        return await self.get(evaluation_id)

    async def retry(self, evaluation_id: str) -> Evaluation:
        """Write the report of a job that failed anew, or that was put off at once: its records are kept until then.

        Raises NotFoundError, and FailedPreconditionError for a job in any other state.
        """
        await self._ledger.reopen(evaluation_id)
        await self._wake(1)
        return await self.get(evaluation_id)

    async def delete(self, evaluation_id: str) -> None:
        """Forget a job that has ended; its files stay. Raises NotFoundError, and FailedPreconditionError before."""
        await self._ledger.delete(evaluation_id)

    async def report(self, evaluation_id: str) -> Report:
        """Return the report of a job that has ended. Raises FailedPreconditionError before that."""
        job = await self._ledger.get(evaluation_id)
        if not job.state.ended:
            raise FailedPreconditionError(
                f"evaluation {evaluation_id} is {job.state.value} ({job.done_samples} of {job.total_samples} samples); "
                "its report is written when it ends: follow it with WatchEvaluation"
            )
        if job.state is EvaluationState.FAILED:
            raise FailedPreconditionError(
                f"evaluation {evaluation_id} failed and has no report: {job.error}. Its records are kept: "
                "RetryEvaluation writes the report once the cause is gone"
            )
        try:
            summary_json = await asyncio.to_thread(read_text, job.output_uri, SUMMARY_JSON_FILE)
            summary_markdown = await asyncio.to_thread(read_text, job.output_uri, SUMMARY_MARKDOWN_FILE)
        except NotFoundError:
            if job.done_samples:
                raise
            raise FailedPreconditionError(
                f"evaluation {evaluation_id} was cancelled before any sample was answered; there is nothing to report"
            ) from None
        if len(summary_json) + len(summary_markdown) > MAX_REPORT_CHARACTERS:
            raise FailedPreconditionError(
                f"the report of evaluation {evaluation_id} is too large for a message; read it at {job.output_uri}"
            )
        return Report(summary_json, summary_markdown, job.output_uri)

    def _plan(self, spec: EvaluationSpec, running: RunningSystem) -> NewEvaluation:
        contents = read_datasets(
            spec.datasets,
            protocol=spec.protocol,
            roots=self._options.dataset_roots,
            image_root=spec.image_root,
            max_bytes=self._options.max_dataset_bytes,
        )
        samples = plan_samples(spec, contents, self._options.max_samples)
        bad_rows = [bad for content in contents for bad in content.bad_rows]
        return NewEvaluation(
            spec=spec,
            shards=split_into_shards(samples, spec.shard_size or self._options.shard_size),
            output_uri=self._options.output_uri,
            bad_rows=[asdict(bad) for bad in bad_rows[:KEPT_BAD_ROWS]],
            bad_row_count=len(bad_rows),
            provenance={
                "files": [asdict(file) for file in dataset_files(contents)],
                "system": asdict(running),
                "version": version("loraretriever"),
            },
        )

    async def _check_true_adapters(self, job: NewEvaluation) -> None:
        """Raise FailedPreconditionError for a true adapter that the catalogue does not hold.

        It could be neither found nor hidden: retrieval would always be wrong, and out of domain be in domain.
        """
        named = {sample.adapter_id: sample.dataset for shard in job.shards for sample in shard if sample.adapter_id}
        known = await self._system.adapters() if named else None
        unknown = sorted(set(named) - known) if known is not None else []
        if unknown:
            raise FailedPreconditionError(
                f"the catalogue holds no adapter {', '.join(map(repr, unknown[:MAX_NAMED]))}, which the job names "
                f"as trained for dataset {named[unknown[0]]!r}; register it, or name another (or none)",
                adapter_id=unknown[0],
                dataset=named[unknown[0]],
            )

    async def _wake(self, count: int) -> None:
        """Wake workers. When the broker is away the reconciler does it later: the job is in the ledger already."""
        try:
            await asyncio.to_thread(self._dispatcher.wake, count)
        except Exception as error:
            log.warning("workers are woken later", reason=str(error))
