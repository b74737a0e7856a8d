"""Following a job to its end and reading its report, from the orchestrator or from the job's folder."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from infra.contract.errors import UnavailableError
from orchestrator.cli import output as console
from orchestrator.cli.options.targets import OrchestratorTier
from orchestrator.cli.progress import show_job
from orchestrator.clients.evaluation import EvaluationClient
from orchestrator.evaluation.job import Evaluation, EvaluationState, Report
from orchestrator.evaluation.report.output_files import SUMMARY_JSON_FILE, SUMMARY_MARKDOWN_FILE, read_summary
from orchestrator.evaluation.report.summary import Summary
from orchestrator.evaluation.storage import read_text


def follow(job_id: str, orchestrator: OrchestratorTier) -> Evaluation:
    """Show a job's progress until it ends, and return its final state."""

    async def watch(client: EvaluationClient) -> Evaluation:
        try:
            return await show_job(client.watch(job_id))
        except asyncio.CancelledError:
            console.note(
                f"job {job_id} continues; follow it with 'loraretriever evaluate watch {job_id}', "
                f"stop it with 'loraretriever evaluate cancel {job_id}'"
            )
            raise

    try:
        return orchestrator.call_evaluations(watch)
    except UnavailableError as error:
        error.add_note(
            f"the job is kept: 'loraretriever evaluate watch {job_id}' follows it once the orchestrator runs again"
        )
        raise


def follow_to_report(job_id: str, orchestrator: OrchestratorTier) -> Report:
    """Show a job's progress until it ends, and return its report. Raises UnavailableError for a job that failed."""
    job = follow(job_id, orchestrator)
    if job.state is EvaluationState.FAILED:
        raise UnavailableError(f"job {job_id} failed: {job.error}")
    return fetch_report(job_id, orchestrator)


def fetch_report(job: str, orchestrator: OrchestratorTier) -> Report:
    """Return the report of a job that has ended, named by its id or its folder.

    Raises:
        NotFoundError: there is no job of this id, or no report in the folder.
        InvalidArgumentError: the folder's summary cannot be read.
        FailedPreconditionError: the job runs, or failed.
    """
    if is_folder(job):
        read_summary(job)
        return Report(read_text(job, SUMMARY_JSON_FILE), read_text(job, SUMMARY_MARKDOWN_FILE), job)
    return orchestrator.call_evaluations(lambda client: client.report(job))


def is_folder(source: str) -> bool:
    """Return whether a job is named by its folder, a path or a URI, rather than by its id."""
    return Path(source).is_dir() or "/" in source


def summary_of(report: Report) -> Summary:
    """Return the numbers of a report."""
    return Summary.from_json(json.loads(report.summary_json))
