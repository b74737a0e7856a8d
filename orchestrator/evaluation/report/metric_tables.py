"""Tables of metrics, retrieval and timings as plain text, for both Markdown and HTML."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from orchestrator.evaluation.metrics.uncertainty import UNSCORED, Estimate
from orchestrator.evaluation.report.formatting import (
    UNSCORED_TEXT,
    ReportTable,
    decimal_with_error,
    interval_text,
    milliseconds,
    percent,
    percent_with_error,
)
from orchestrator.evaluation.report.summary import ALL, Cell, Difference, Summary, shared_floor

STANDARD_ERROR_NOTE = "± is one standard error, clustered by episode."
TEXT_COLUMNS = ("exact match", "ROUGE-L", "BLEU")
_GROUP_TITLES = {"app": "apps", "category": "categories"}


def group_title(name: str) -> str:
    """Return the title of a group of datasets."""
    return _GROUP_TITLES.get(name, name)


def cells_of(cells: Iterable[Cell], data: str) -> list[Cell]:
    """Return the cells of one dataset or group, one per strategy."""
    return [cell for cell in cells if cell.data == data]


@dataclass(frozen=True)
class MainScore:
    """The main score of one kind of question: its name, and how to get it from a cell or a difference."""

    name: str
    of: Callable[[Cell], Estimate]
    of_difference: Callable[[Difference], Estimate]


STEPS = MainScore("steps right", lambda cell: cell.action.steps, lambda difference: difference.steps)
TEXTS = MainScore("exact match", lambda cell: cell.texts.exact_match, lambda difference: difference.texts)


def main_scores(summary: Summary) -> tuple[MainScore, ...]:
    """Return the main scores of a job: steps, whole answers, or both."""
    if summary.only_texts:
        return (TEXTS,)
    return (STEPS, TEXTS) if summary.has_texts else (STEPS,)


def datasets_with_score(summary: Summary, score: MainScore) -> list[str]:
    """Return the datasets that have the score, and those that have no main score at all."""

    def has(name: str, candidate: MainScore) -> bool:
        return any(candidate.of(cell).count for cell in cells_of(summary.datasets, name))

    scores = main_scores(summary)
    return [
        name
        for name in summary.dataset_names
        if has(name, score) or not any(has(name, candidate) for candidate in scores)
    ]


def score_text(
    cell: Cell | None, score: Callable[[Cell], Estimate], text: Callable[[Estimate], str] = percent_with_error
) -> str:
    """Format a score of a cell; if it is mostly failed, the number of failed samples instead."""
    if cell is None:
        return UNSCORED_TEXT
    return failed_text(cell) if cell.mostly_failed else text(score(cell))


def failed_text(cell: Cell) -> str:
    """Return "2 of 3 failed"."""
    return f"{cell.failed:,} of {cell.samples:,} failed"


def whole_answer_texts(cell: Cell, text: Callable[[Estimate], str] = percent_with_error) -> list[str]:
    """Format the scores of whole answers, in the order of TEXT_COLUMNS."""
    if cell.mostly_failed:
        return [failed_text(cell), *[UNSCORED_TEXT] * (len(TEXT_COLUMNS) - 1)]
    return [text(score) for score in (cell.texts.exact_match, cell.texts.rouge_l, cell.texts.bleu)]


def all_metrics_table(summary: Summary) -> ReportTable | None:
    """Return all action scores with their parts and floors, one row per strategy; None: there are none."""
    rows = tuple(
        (cell.strategy, f"{cell.samples:,}", f"{cell.failed:,}", *_action_scores(cell))
        for cell in cells_of(summary.groups, ALL)
    )
    if not rows or summary.only_texts:
        return None
    samples = "samples of both kinds" if summary.is_mixed else "samples"
    return ReportTable(
        title="Every metric of steps, %" if summary.is_mixed else "All datasets, every metric, %",
        columns=(
            "strategy", samples, "failed", "steps right", "floor", "action type", "argument",
            "episodes right", "floor", "steps, legacy", "floor", "episodes, legacy", "floor",
        ),
        rows=rows,
        note=(
            "Action type: over the steps whose truth is an action; argument: over those whose action takes one. Each "
            f"floor is fitted to the samples that its strategy answered. {STANDARD_ERROR_NOTE}"
        ),
    )  # fmt: skip


def _action_scores(cell: Cell) -> tuple[str, ...]:
    parts = cell.action_parts
    by_type, by_argument = (UNSCORED, UNSCORED) if parts is None else (parts.action_type, parts.argument)
    if cell.mostly_failed:
        return (failed_text(cell), *[UNSCORED_TEXT] * 9)
    return (
        percent_with_error(cell.action.steps),
        percent(cell.action.step_floor),
        percent_with_error(by_type),
        percent_with_error(by_argument),
        percent_with_error(cell.action.episodes),
        percent(cell.action.episode_floor),
        percent_with_error(cell.legacy.steps),
        percent(cell.legacy.step_floor),
        percent_with_error(cell.legacy.episodes),
        percent(cell.legacy.episode_floor),
    )


def retrieval_table(summary: Summary) -> ReportTable | None:
    """Return retrieval accuracy by strategy and group; None: no true adapter is known."""
    rows = tuple(
        (
            cell.strategy,
            group_title(cell.data),
            f"{cell.retrieval.at_1.count:,}",
            percent_with_error(cell.retrieval.at_1),
            percent_with_error(cell.retrieval.at_3),
            decimal_with_error(cell.retrieval.mean_reciprocal_rank),
        )
        for cell in summary.groups
        if cell.retrieval.at_1.count and not cell.mostly_failed
    )
    if not rows:
        return None
    return ReportTable(
        title="Was the right adapter retrieved?",
        columns=("strategy", "data", "samples", "@1, %", "@3, %", "mean reciprocal rank"),
        rows=rows,
        note="Over samples whose true adapter is known and was not hidden from retrieval.",
        text_columns=2,
    )


def timings_table(summary: Summary) -> ReportTable | None:
    """Return the mean time of an answer and of its phases, one row per strategy; None: nothing was measured."""
    rows = tuple(
        (
            cell.strategy,
            milliseconds(cell.timings.total_s),
            milliseconds(cell.timings.retrieval_s),
            milliseconds(cell.timings.embed_s),
            milliseconds(cell.timings.search_s),
            milliseconds(cell.timings.queue_s),
            milliseconds(cell.timings.prefill_s),
            milliseconds(cell.timings.decode_s),
        )
        for cell in cells_of(summary.groups, ALL)
        if cell.timings.total_s is not None
    )
    columns = ("strategy", "whole answer", "retrieval", "of it embed", "search", "queue", "prefill", "decode")
    return ReportTable("Time an answer, mean ms", columns, rows) if rows else None


def steps_by_dataset_table(summary: Summary) -> ReportTable | None:
    """Return step accuracy, one row per dataset; None: no truth is an action."""
    if summary.only_texts:
        return None
    rows = []
    for name in datasets_with_score(summary, STEPS):
        cells = cells_of(summary.datasets, name)
        rows.append(
            (
                name,
                f"{max((cell.action.steps.count for cell in cells), default=0):,}",
                *(score_text(summary.dataset(strategy, name), STEPS.of) for strategy in summary.strategies),
                percent(shared_floor(cells)),
            )
        )
    columns = ("dataset", "steps", *summary.strategies, "floor")
    return ReportTable("Step accuracy by dataset, %", columns, tuple(rows), STANDARD_ERROR_NOTE)


def answers_by_dataset_table(summary: Summary) -> ReportTable | None:
    """Return the scores of whole answers by strategy and dataset; None: fewer than two datasets have any."""
    cells = [cell for cell in summary.datasets if cell.texts.exact_match.count]
    if len({cell.data for cell in cells}) < 2:
        return None
    rows = tuple(
        (cell.strategy, cell.data, f"{cell.texts.exact_match.count:,}", *whole_answer_texts(cell, interval_text))
        for cell in cells
    )
    columns = ("strategy", "dataset", "answers", *TEXT_COLUMNS)
    return ReportTable("Whole answers by dataset, %", columns, rows, text_columns=2)
