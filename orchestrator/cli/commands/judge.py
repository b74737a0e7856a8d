"""`loraretriever evaluate judge`: a model grades the answers of a job."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.cli import output as console
from orchestrator.cli.ci_gate import Coverage, gated_scores
from orchestrator.cli.job_output import print_locations
from orchestrator.cli.options.binding import with_options
from orchestrator.cli.options.scoring import GateOptions, JudgeOptions
from orchestrator.cli.options.targets import OrchestratorTier
from orchestrator.cli.progress import judging
from orchestrator.cli.result_sources import job_folder, results_in
from orchestrator.cli.tables import headline_table
from orchestrator.evaluation.judge.grading import grade_records
from orchestrator.evaluation.report.comparison_tables import judge_table, reportable_differences
from orchestrator.evaluation.report.html.samples import ThumbnailBudget
from orchestrator.evaluation.report.markdown_report import judge_note
from orchestrator.evaluation.report.metric_tables import cells_of
from orchestrator.evaluation.report.output_files import add_grades, read_summary
from orchestrator.evaluation.report.summary import ALL, Cell, Summary
from orchestrator.evaluation.spec import EvaluationSpec


@with_options
def judge(
    *,
    job: Annotated[str, typer.Argument(help="A job that has ended: its id or its folder.")],
    judging_by: JudgeOptions,
    gating: GateOptions,
    orchestrator: OrchestratorTier,
) -> None:
    """Let a model grade every answer of a job, and write its report again with the grades."""
    gate = gating.gate()
    endpoint, prompt = judging_by.endpoint(), judging_by.prompt()
    folder = job_folder(job, orchestrator)
    pictures = ThumbnailBudget(_picture_roots(read_summary(folder).facts.spec))
    records = results_in(folder, job).records
    with judging(len(records)) as advance:
        grades = asyncio.run(grade_records(records, endpoint, prompt, judging_by.judge_cache, advance))
    summary = add_grades(folder, grades, records, pictures)
    table = judge_table(summary)
    if orchestrator.as_json:
        console.print_json({"judge": grades.facts, "strategies": _grades(summary)})
    elif table is not None:
        console.results().print(headline_table(table))
        print_locations(folder)
        console.note(judge_note(grades.facts))
    gate.check_scores(gated_scores(summary, lambda cell: cell.judge, (), _coverage))


def _grades(summary: Summary) -> dict[str, Any]:
    """Return by strategy its mean grade, the number of unscored samples, and its paired differences by reference."""
    return {
        cell.strategy: {
            **asdict(cell.judge),
            "unscored": cell.judge_unscored,
            "differences": {
                difference.reference: difference.judge
                for difference in reportable_differences(summary)
                if difference.strategy == cell.strategy
            },
        }
        for cell in cells_of(summary.groups, ALL)
    }


def _coverage(cell: Cell) -> Coverage:
    return Coverage(cell.samples, cell.samples - cell.judge.count)


def _picture_roots(spec: EvaluationSpec) -> tuple[Path, ...]:
    """Return the folders of a report's pictures: those of the datasets, and the image root."""
    folders = [Path(dataset.uri).parent for dataset in spec.datasets]
    return tuple(dict.fromkeys([*folders, *([Path(spec.image_root)] if spec.image_root else [])]))
