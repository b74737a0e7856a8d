"""Progress of work on standard error."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from infra.contract.errors import UnavailableError
from orchestrator.cli import output as console
from orchestrator.evaluation.job import Evaluation

#: Interval of progress lines where standard error is not a terminal: often enough to see that a job in a CI log runs,
#: rarely enough to not fill the log.
_LINE_INTERVAL_S = 10.0


async def show_job(jobs: AsyncIterator[Evaluation]) -> Evaluation:
    """Show the progress of a watched job until it ends, as a bar or as lines, and return its final state."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    err = console.progress()
    last_line_at = time.monotonic()
    job: Evaluation | None = None
    with Progress(*columns, TimeRemainingColumn(), console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("evaluating", total=None)
        async for job in jobs:
            failed = f", {job.failed_samples} failed" if job.failed_samples else ""
            stalled = f": {job.stalled}" if job.stalled else ""
            bar.update(
                task, description=f"{job.state}{failed}{stalled}", total=job.total_samples, completed=job.done_samples
            )
            if not err.is_terminal and time.monotonic() - last_line_at > _LINE_INTERVAL_S:
                last_line_at = time.monotonic()
                console.note(f"{job.state}: {job.done_samples} of {job.total_samples} samples{failed}{stalled}")
    if job is None or not job.state.ended:
        raise UnavailableError("the orchestrator sent no more states of the job; see 'loraretriever evaluate status'")
    return job


@contextmanager
def judging(answers: int) -> Iterator[Callable[[int], None]]:
    """Show how many answers are judged. Yields a function that takes the number of those done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    err = console.progress()
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("judging", total=answers)
        yield lambda done: bar.update(task, completed=done)
