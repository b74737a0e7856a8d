"""Following a job to its end and reading its report, from the orchestrator or from the job's folder."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

from infra.contract.errors import InvalidArgumentError, NotFoundError, UnavailableError
from orchestrator.cli import output as console
from orchestrator.cli.options.targets import OrchestratorTier
from orchestrator.cli.progress import show_job
from orchestrator.clients.evaluation import EvaluationClient
from orchestrator.evaluation.job import Evaluation, EvaluationState, Report
from orchestrator.evaluation.report.output_files import SUMMARY_JSON_FILE, SUMMARY_MARKDOWN_FILE, read_summary
from orchestrator.evaluation.report.summary import Summary
from orchestrator.evaluation.storage import read_text

#: Names the job that was submitted last.
LATEST = "latest"
_COMPLETE_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}")


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
    job_id = resolve_job(job, orchestrator)
    return orchestrator.call_evaluations(lambda client: client.report(job_id))


def resolve_job(job: str, orchestrator: OrchestratorTier) -> str:
    """Return the id of the job named by its id, by the start of its id, or by `latest`.

    Raises:
        NotFoundError: there is no such job.
        InvalidArgumentError: several ids start like that.
    """
    if _COMPLETE_ID.fullmatch(job):
        return job
    ids = [found.evaluation_id for found in orchestrator.call_evaluations(lambda client: client.list())]
    if job == LATEST:
        if not ids:
            raise NotFoundError("there is no job yet; 'loraretriever evaluate run' starts one")
        return ids[0]
    matching = [job] if job in ids else [found for found in ids if found.startswith(job)]
    if not matching:
        raise NotFoundError(f"there is no job {job!r}; 'loraretriever evaluate list' shows all")
    if len(matching) > 1:
        raise InvalidArgumentError(
            "job_id", f"{job!r} is the start of {len(matching)} ids: {', '.join(matching[:3])}; give more of it"
        )
    return matching[0]


def is_folder(source: str) -> bool:
    """Return whether a job is named by its folder, a path or a URI, rather than by its id."""
    return Path(source).is_dir() or "/" in source


def summary_of(report: Report) -> Summary:
    """Return the numbers of a report."""
    return Summary.from_json(json.loads(report.summary_json))
