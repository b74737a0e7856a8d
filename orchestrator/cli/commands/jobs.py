"""`loraretriever evaluate status|list|watch|report|cancel|retry|delete`: jobs that have been submitted."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.markdown import Markdown
from rich.table import Table

from orchestrator.cli import output as console
from orchestrator.cli.job_client import fetch_report, follow, follow_to_report, resolve_job, summary_of
from orchestrator.cli.job_output import check_success, listed_datasets, listed_strategies, print_job, print_report
from orchestrator.cli.options.binding import with_options
from orchestrator.cli.options.scoring import JobGateOptions
from orchestrator.cli.options.targets import OrchestratorTier
from orchestrator.clients.evaluation import EvaluationClient

app = typer.Typer()

JobId = Annotated[str, typer.Argument(help="The job's id, the start of it, or latest.")]


@app.command("status")
@with_options
def status(
    *,
    job_id: Annotated[
        str | None, typer.Argument(help="The job's id, the start of it, or latest; without one, all jobs are listed.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the job until it ends.")] = False,
    orchestrator: OrchestratorTier,
) -> None:
    """Show the state of a job, or list all jobs."""
    if job_id is None:
        _print_jobs(orchestrator)
        return
    resolved = resolve_job(job_id, orchestrator)
    if watch:
        job = follow(resolved, orchestrator)
        print_job(job, orchestrator.as_json)
        check_success(resolved, job.state)
    else:
        print_job(orchestrator.call_evaluations(lambda client: client.get(resolved)), orchestrator.as_json)


@app.command("list")
@with_options
def list_jobs(*, orchestrator: OrchestratorTier) -> None:
    """List all jobs, newest first."""
    _print_jobs(orchestrator)


@app.command("watch")
@with_options
def watch(*, job_id: JobId, gate: JobGateOptions, orchestrator: OrchestratorTier) -> None:
    """Follow a job until it ends, then show its headline."""
    checked = gate.gate()
    print_report(follow_to_report(resolve_job(job_id, orchestrator), orchestrator), checked, orchestrator.as_json)


@app.command("report")
@with_options
def report(
    *,
    job: Annotated[str, typer.Argument(help="A job that has ended: its id, the start of it, latest, or its folder.")],
    gate: JobGateOptions,
    orchestrator: OrchestratorTier,
) -> None:
    """Print the report of a job that has ended: summary.md, or with --json summary.json."""
    checked = gate.gate()
    fetched = fetch_report(job, orchestrator)
    if orchestrator.as_json:
        console.print_text(fetched.summary_json.rstrip("\n") + "\n")
    elif sys.stdout.isatty():
        console.results().print(Markdown(fetched.summary_markdown))
    else:
        console.print_text(fetched.summary_markdown)
    checked.check(summary_of(fetched))


@app.command("cancel")
@with_options
def cancel(*, job_id: JobId, orchestrator: OrchestratorTier) -> None:
    """Stop a job: running samples finish, the others never start."""
    resolved = resolve_job(job_id, orchestrator)
    print_job(orchestrator.call_evaluations(lambda client: client.cancel(resolved)), orchestrator.as_json)


@app.command("retry")
@with_options
def retry(*, job_id: JobId, orchestrator: OrchestratorTier) -> None:
    """Write the report of a failed job again, once the cause is fixed: its records are kept until then."""
    resolved = resolve_job(job_id, orchestrator)
    print_job(orchestrator.call_evaluations(lambda client: client.retry(resolved)), orchestrator.as_json)


@app.command("delete")
@with_options
def delete(
    *,
    job_ids: Annotated[list[str], typer.Argument(help="Ids of jobs that have ended.")],
    orchestrator: OrchestratorTier,
) -> None:
    """Forget jobs that have ended; their files stay."""

    async def forget(client: EvaluationClient) -> None:
        for job_id in job_ids:
            await client.delete(job_id)
            if not orchestrator.as_json:
                console.note(f"forgot {job_id}")

    orchestrator.call_evaluations(forget)
    if orchestrator.as_json:
        console.print_json({"deleted": job_ids})


def _print_jobs(orchestrator: OrchestratorTier) -> None:
    jobs = orchestrator.call_evaluations(lambda client: client.list())
    if orchestrator.as_json:
        console.print_json(jobs)
        return
    table = Table()
    table.add_column("job", no_wrap=True)
    for column in ("state", "done", "failed", "bad rows", "started", "datasets", "strategies", "protocol"):
        table.add_column(column)
    for job in jobs:
        table.add_row(
            job.evaluation_id,
            job.state,
            f"{job.done_samples}/{job.total_samples}",
            str(job.failed_samples),
            str(job.bad_rows),
            f"{job.create_time:%Y-%m-%d %H:%M}",
            listed_datasets(job.spec),
            listed_strategies(job.spec),
            job.spec.protocol.value,
        )
    console.results().print(table)
