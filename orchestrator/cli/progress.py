"""What a job looks like while it runs, and the table it ends in."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from infra.contract.errors import UnavailableError
from orchestrator.cli import output as console
from orchestrator.evaluation.job import Evaluation
from orchestrator.evaluation.report.formatting import ReportTable

LINE_INTERVAL_S = 10.0


async def shown(jobs: AsyncIterator[Evaluation]) -> Evaluation:
    """Show on standard error how far a watched job is until it ends, by a bar or by lines; return it as it ended."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    err = console.progress()
    said_at = time.monotonic()
    job: Evaluation | None = None
    with Progress(*columns, TimeRemainingColumn(), console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("evaluating", total=None)
        async for job in jobs:
            failed = f", {job.failed_samples} failed" if job.failed_samples else ""
            stalled = f": {job.stalled}" if job.stalled else ""
            bar.update(
                task, description=f"{job.state}{failed}{stalled}", total=job.total_samples, completed=job.done_samples
            )
            if not err.is_terminal and time.monotonic() - said_at > LINE_INTERVAL_S:
                said_at = time.monotonic()
                console.note(f"{job.state}: {job.done_samples} of {job.total_samples} samples{failed}{stalled}")
    if job is None or not job.state.ended:
        raise UnavailableError("the orchestrator stopped telling of the job; see 'loraretriever evaluate status'")
    return job


def headline_table(table: ReportTable) -> Table:
    """Return a report's headline for a terminal."""
    shown_table = Table(title=table.title, caption=table.note, caption_justify="left")
    for index, column in enumerate(table.columns):
        shown_table.add_column(column, justify="left" if index == 0 else "right")
    for row in table.rows:
        shown_table.add_row(*row)
    return shown_table
