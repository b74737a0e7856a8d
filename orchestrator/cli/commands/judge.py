"""`loraretriever evaluate judge`: a model grades what a job answered; the options of judges for other commands."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from infra.contract.errors import InvalidArgumentError
from orchestrator.cli import output as console
from orchestrator.cli.ci_gate import Covered, gate_of, measured
from orchestrator.cli.commands.jobs import print_places
from orchestrator.cli.options import FailUnder, MaxFailed
from orchestrator.cli.progress import headline_table
from orchestrator.cli.result_sources import folder_of, results_in
from orchestrator.cli.settings import client_settings
from orchestrator.cli.targets import AsJson, OrchestratorTarget
from orchestrator.evaluation.judge.chat_client import ChatEndpoint
from orchestrator.evaluation.judge.grading import DEFAULT_TEMPLATE, JudgePrompt, grade_records
from orchestrator.evaluation.report.comparison_tables import judge_table, reportable_differences
from orchestrator.evaluation.report.html.samples import ThumbnailBudget
from orchestrator.evaluation.report.markdown_report import judge_note
from orchestrator.evaluation.report.metric_tables import cells_of
from orchestrator.evaluation.report.output_files import add_grades, read_summary
from orchestrator.evaluation.report.summary import ALL, Cell, Summary
from orchestrator.evaluation.spec import EvaluationSpec

CACHE = Path(".loraretriever/judge")

JudgeUrl = Annotated[
    str, typer.Option("--judge", help="Let a model grade the answers: base URL of an OpenAI-compatible endpoint.")
]
JudgeModel = Annotated[
    str, typer.Option(help="The judge's model. Its key is read from LORARETRIEVER_CLIENT_JUDGE_KEY.")
]
JudgePromptFile = Annotated[
    Path | None,
    typer.Option("--judge-prompt", help="File with the judge's prompt: {truth}, {answer}, {question} are filled in."),
]
JudgeRate = Annotated[float | None, typer.Option(help="Calls a minute at most (default: no limit).")]
JudgeConcurrency = Annotated[int, typer.Option(help="Calls under way at a time.")]
JudgeCache = Annotated[Path, typer.Option(help="Folder of what the judge has said already.")]


def judge(
    *,
    job: Annotated[str, typer.Argument(help="A job that has ended: its id, or its folder.")],
    judge_url: JudgeUrl = "",
    judge_model: JudgeModel = "",
    judge_prompt: JudgePromptFile = None,
    judge_rate: JudgeRate = None,
    judge_concurrency: JudgeConcurrency = 8,
    judge_cache: JudgeCache = CACHE,
    fail_under: FailUnder = None,
    max_failed: MaxFailed = None,
    orchestrator_target: OrchestratorTarget = "",
    as_json: AsJson = False,
) -> None:
    """Let a model grade every answer of a job, and write its report anew with the grades."""
    gate = gate_of(fail_under, max_failed)
    endpoint = endpoint_of(judge_url, judge_model, judge_rate, judge_concurrency)
    prompt = JudgePrompt(read_prompt(judge_prompt))
    folder = folder_of(job, orchestrator_target)
    pictures = ThumbnailBudget(picture_roots(read_summary(folder).facts.spec))
    records = results_in(folder, job).records
    with judging(len(records)) as advance:
        grades = asyncio.run(grade_records(records, endpoint, prompt, judge_cache, advance))
    summary = add_grades(folder, grades, records, pictures)
    table = judge_table(summary)
    if as_json:
        console.print_json({"judge": grades.facts, "strategies": _grades(summary)})
    elif table is not None:
        console.results().print(headline_table(table))
        print_places(folder)
        console.note(judge_note(grades.facts))
    gate.check_scores(measured(summary, lambda cell: cell.judge, (), _graded))


def _grades(summary: Summary) -> dict[str, Any]:
    """Return by strategy the mean grade, how many samples have none, and the paired differences by reference."""
    return {
        cell.strategy: {
            **asdict(cell.judge),
            "unscored": cell.judge_unscored,
            "differences": {
                each.reference: each.judge for each in reportable_differences(summary) if each.strategy == cell.strategy
            },
        }
        for cell in cells_of(summary.groups, ALL)
    }


def _graded(cell: Cell) -> Covered:
    return Covered(cell.samples, cell.samples - cell.judge.count)


def endpoint_of(url: str, model: str, rate: float | None, concurrency: int) -> ChatEndpoint:
    """Return the endpoint that options name, with the key of the environment. Raises InvalidArgumentError."""
    key = client_settings().judge_key
    secret = key.get_secret_value() if key is not None else ""
    return ChatEndpoint(url, model, key=secret, requests_per_minute=rate, concurrency=concurrency)


def read_prompt(file: Path | None) -> str:
    """Return the template in a file, or the default one. Raises InvalidArgumentError."""
    if file is None:
        return DEFAULT_TEMPLATE
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InvalidArgumentError("judge_prompt", f"{file} cannot be read: {error}") from error


@contextmanager
def judging(answers: int) -> Iterator[Callable[[int], None]]:
    """Show how many of the answers are done; yields what is to be told."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    err = console.progress()
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("judging", total=answers)
        yield lambda done: bar.update(task, completed=done)


def picture_roots(spec: EvaluationSpec) -> tuple[Path, ...]:
    """Return the folders in which a report's pictures are looked for: those of the datasets, and the image root."""
    folders = [Path(dataset.uri).parent for dataset in spec.datasets]
    return tuple(dict.fromkeys([*folders, *([Path(spec.image_root)] if spec.image_root else [])]))
