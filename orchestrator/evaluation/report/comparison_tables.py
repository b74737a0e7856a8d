"""Tables of strategies compared on the same questions: paired differences, and the grades of a judge."""

from __future__ import annotations

from orchestrator.evaluation.metrics.uncertainty import Estimate
from orchestrator.evaluation.report.formatting import ReportTable, interval_text
from orchestrator.evaluation.report.metric_tables import cells_of, main_scores, score_text
from orchestrator.evaluation.report.summary import ALL, Difference, Summary

_HOLDS_ZERO = "an interval that holds zero does not show that there is a difference"
DIFFERENCES_NOTE = (
    f"On the questions that both have a score for, with 95 % intervals, clustered by episode: {_HOLDS_ZERO}. "
    "Strategies most of whose samples failed are not compared."
)
JUDGED_NOTE = (
    "Grades in percent of the best, with 95 % intervals, clustered by episode. Each mean is of the answers that have a "
    f"grade. Differences are of the questions that both have a grade for, in percentage points: {_HOLDS_ZERO}."
)


def reportable_differences(summary: Summary) -> list[Difference]:
    """Return the differences on all datasets, without those of strategies most of whose samples failed."""
    return [each for each in summary.differences if each.data == ALL and not summary.mostly_failed_in(each)]


def paired_differences_table(summary: Summary) -> ReportTable | None:
    """Return what each strategy has over the one that it is compared with; None where nothing is to be compared."""
    found = reportable_differences(summary)
    scores = [score for score in main_scores(summary) if any(score.of_difference(each).count for each in found)]
    if not scores:
        return None
    rows = tuple(
        (each.strategy, each.reference, *(interval_text(score.of_difference(each), signed=True) for score in scores))
        for each in found
    )
    columns = ("strategy", "compared with", *(score.name for score in scores))
    return ReportTable("Paired differences, percentage points", columns, rows, DIFFERENCES_NOTE, text_columns=2)


def judge_table(summary: Summary) -> ReportTable | None:
    """Return a judge's grades by strategy, with their paired differences; None where nobody has judged."""
    if summary.judge is None:
        return None
    differences = {
        (each.strategy, each.reference): each.judge for each in reportable_differences(summary) if each.judge.count
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
