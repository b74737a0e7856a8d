"""Tables that compare strategies on the same questions: paired differences, and a judge's grades."""

from __future__ import annotations

from orchestrator.evaluation.metrics.uncertainty import Estimate
from orchestrator.evaluation.report.formatting import ReportTable, interval_text
from orchestrator.evaluation.report.metric_tables import cells_of, main_scores, score_text
from orchestrator.evaluation.report.summary import ALL, Difference, Summary

_CONTAINS_ZERO = "an interval that contains zero does not show a difference"
DIFFERENCES_NOTE = (
    f"On the questions that both have a score for, with 95 % intervals clustered by episode: {_CONTAINS_ZERO}. "
    "Strategies with more than half of their samples failed are not compared."
)
JUDGED_NOTE = (
    "Mean grades in percent, with 95 % intervals clustered by episode, over the answers that have a grade. "
    f"Differences in percentage points, on the questions that both have a grade for: {_CONTAINS_ZERO}."
)


def reportable_differences(summary: Summary) -> list[Difference]:
    """Return the differences over all datasets, except those of mostly failed strategies."""
    return [
        difference
        for difference in summary.differences
        if difference.data == ALL and not summary.compares_mostly_failed(difference)
    ]


def paired_differences_table(summary: Summary) -> ReportTable | None:
    """Return the difference of each strategy to its reference; None: nothing can be compared."""
    differences = reportable_differences(summary)
    scores = [
        score
        for score in main_scores(summary)
        if any(score.of_difference(difference).count for difference in differences)
    ]
    if not scores:
        return None
    rows = tuple(
        (
            difference.strategy,
            difference.reference,
            *(interval_text(score.of_difference(difference), signed=True) for score in scores),
        )
        for difference in differences
    )
    columns = ("strategy", "compared with", *(score.name for score in scores))
    return ReportTable("Paired differences, percentage points", columns, rows, DIFFERENCES_NOTE, text_columns=2)


def judge_table(summary: Summary) -> ReportTable | None:
    """Return a judge's grades by strategy with their paired differences; None: not judged."""
    if summary.judge is None:
        return None
    differences = {
        (difference.strategy, difference.reference): difference.judge
        for difference in reportable_differences(summary)
        if difference.judge.count
    }
    references = list(dict.fromkeys(reference for _, reference in differences))
    rows = tuple(
        (
            cell.strategy,
            f"{cell.judge.count:,}",
            f"{cell.judge_unscored:,}",
            score_text(cell, lambda cell: cell.judge, interval_text),
            *(_signed(differences.get((cell.strategy, reference))) for reference in references),
        )
        for cell in cells_of(summary.groups, ALL)
    )
    columns = ("strategy", "graded", "unscored", "mean grade", *(f"difference to {name}" for name in references))
    return ReportTable("Graded by a judge, %", columns, rows, JUDGED_NOTE)


def _signed(difference: Estimate | None) -> str:
    return "" if difference is None else interval_text(difference, signed=True)
