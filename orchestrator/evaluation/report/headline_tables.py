"""Headline tables of a job: step accuracy, the scores of whole answers, or both."""

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
class _Format:
    """How a score is formatted, and the words for it in a note."""

    text: Callable[[Estimate], str]
    description: str


_WITH_INTERVALS = _Format(interval_text, "with 95 % intervals")
_WITH_ERRORS = _Format(percent_with_error, "± standard error")


def headline_tables(summary: Summary, *, intervals: bool = True) -> list[ReportTable]:
    """Return step accuracy if there are true actions, then the scores of whole answers if there are other truths.

    With 95 % intervals, or with standard errors where there is little room.
    """
    score_format = _WITH_INTERVALS if intervals else _WITH_ERRORS
    tables = [] if summary.only_texts else [_of_steps(summary, score_format)]
    return [*tables, _of_texts(summary, score_format)] if summary.has_texts else tables


def _of_steps(summary: Summary, score_format: _Format) -> ReportTable:
    """Return step accuracy under `action` by strategy and group of datasets, with the floor in the last row."""
    groups = summary.group_names
    rows = [
        (
            _strategy_title(summary, strategy),
            *(score_text(summary.group(strategy, group), STEPS.of, score_format.text) for group in groups),
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
            "Correct steps in percent (action type and argument both correct), "
            f"{score_format.description} clustered by episode. "
            "The floor is the score of the best fixed list of actions, which sees neither query nor screen."
            f"{' Whole answers are scored separately.' if summary.is_mixed else ''}{_failed_note(summary)}"
        ),
    )


def _of_texts(summary: Summary, score_format: _Format) -> ReportTable:
    rows = tuple(
        (
            _strategy_title(summary, cell.strategy),
            f"{cell.texts.exact_match.count:,}",
            *whole_answer_texts(cell, score_format.text),
        )
        for cell in cells_of(summary.groups, ALL)
    )
    note = (
        f"Means in percent over the answers to questions whose true answer is not in the action language, "
        f"{score_format.description} clustered by episode.{'' if summary.is_mixed else _failed_note(summary)}"
    )
    return ReportTable("Whole answers, %", ("strategy", "answers", *TEXT_COLUMNS), rows, note)


def _strategy_title(summary: Summary, strategy: str) -> str:
    cell = summary.group(strategy, ALL)
    return f"{strategy} ({cell.failed:,} failed)" if cell is not None and cell.failed else strategy


def _failed_note(summary: Summary) -> str:
    if not summary.failed_samples:
        return ""
    kinds = " (of both kinds)" if summary.is_mixed else ""
    return f" Failed{kinds} and therefore unscored: {pluralize(summary.failed_samples, 'sample')}."
