"""What a job comes to: step accuracy, the scores of whole answers, or both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.evaluation.metrics.uncertainty import Estimate
from orchestrator.evaluation.report.formatting import ReportTable, interval_text, percent, percent_with_error, pluralize
from orchestrator.evaluation.report.metric_tables import (
    STEPS,
    TEXT_COLUMNS,
    cells_of,
    group_title,
    score_text,
    whole_answer_texts,
)
from orchestrator.evaluation.report.summary import ALL, Summary, shared_floor

FLOOR_NAME = "constant template (floor)"


@dataclass(frozen=True)
class _Form:
    """How a score is written, and what stands beside it."""

    text: Callable[[Estimate], str]
    beside: str


_WITH_INTERVALS = _Form(interval_text, "with 95 % intervals")
_WITH_ERRORS = _Form(percent_with_error, "± standard error")


def headline_tables(summary: Summary, *, intervals: bool = True) -> list[ReportTable]:
    """Return the headline of the questions that actions answer, and of those that other texts do, as far as any do.

    With 95 % intervals, or where there is little room with standard errors.
    """
    form = _WITH_INTERVALS if intervals else _WITH_ERRORS
    found = [] if summary.only_texts else [_of_steps(summary, form)]
    return [*found, _of_texts(summary, form)] if summary.has_texts else found


def _of_steps(summary: Summary, form: _Form) -> ReportTable:
    """Return step accuracy under `action`, strategy by group of datasets, with the floor in the last row."""
    groups = summary.group_names
    rows = [
        (
            _strategy_title(summary, strategy),
            *(score_text(summary.group(strategy, group), STEPS.of, form.text) for group in groups),
        )
        for strategy in summary.strategies
    ]
    floors = tuple(percent(shared_floor(cells_of(summary.groups, group))) for group in groups)
    titles = ("all steps" if summary.is_mixed and group == ALL else group_title(group) for group in groups)
    return ReportTable(
        title="Step accuracy, %",
        columns=("strategy", *titles),
        rows=(*rows, (FLOOR_NAME, *floors)),
        note=(
            f"Right steps in percent (action type and argument both right) {form.beside}, clustered by episode. "
            "The floor is the best fixed list of actions that sees neither query nor screen."
            f"{' Whole answers are scored apart.' if summary.is_mixed else ''}{_failed_note(summary)}"
        ),
    )


def _of_texts(summary: Summary, form: _Form) -> ReportTable:
    rows = tuple(
        (
            _strategy_title(summary, cell.strategy),
            f"{cell.texts.exact_match.count:,}",
            *whole_answer_texts(cell, form.text),
        )
        for cell in cells_of(summary.groups, ALL)
    )
    note = (
        f"Means over the answers to questions whose true answer is not in the action language, in percent "
        f"{form.beside}, clustered by episode.{'' if summary.is_mixed else _failed_note(summary)}"
    )
    return ReportTable("Whole answers, %", ("strategy", "answers", *TEXT_COLUMNS), rows, note)


def _strategy_title(summary: Summary, strategy: str) -> str:
    cell = summary.group(strategy, ALL)
    return f"{strategy} ({cell.failed:,} failed)" if cell is not None and cell.failed else strategy


def _failed_note(summary: Summary) -> str:
    if not summary.failed_samples:
        return ""
    kinds = " (of both kinds)" if summary.is_mixed else ""
    return f" Failed{kinds}, and so unscored: {pluralize(summary.failed_samples, 'sample')}."
