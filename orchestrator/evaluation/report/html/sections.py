"""The header of the page, and its sections with numbers and charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.evaluation.records import Record
from orchestrator.evaluation.report.comparison_tables import DIFFERENCES_NOTE, judge_table, reportable_differences
from orchestrator.evaluation.report.formatting import interval_text, pluralize
from orchestrator.evaluation.report.headline_tables import headline_tables
from orchestrator.evaluation.report.html.charts import Bar, bar_chart, heatmap, share_charts
from orchestrator.evaluation.report.html.markup import Markup, element, paragraph, report_table, section, table
from orchestrator.evaluation.report.html.resource_use import resource_use_sections
from orchestrator.evaluation.report.markdown_report import MAX_LISTED, caveats, compared_text, judge_note
from orchestrator.evaluation.report.matrix import domain_matrix, domain_table
from orchestrator.evaluation.report.metric_tables import (
    MainScore,
    all_metrics_table,
    answers_by_dataset_table,
    datasets_with_score,
    failed_text,
    main_scores,
    retrieval_table,
)
from orchestrator.evaluation.report.summary import ALL, Cell, Summary

_MAX_HEATMAP_COLUMNS = 60
"""A wider heatmap is illegible; a table is shown in its place."""


def page_header(summary: Summary) -> Markup:
    """Return the title, what was compared, and the caveats."""
    facts = summary.facts
    planned = facts.planned_samples
    lines = [
        f"{compared_text(summary)}: {pluralize(summary.recorded_samples, 'sample')} in the "
        f"{facts.spec.protocol.value} protocol, {summary.failed_samples:,} of them failed. "
        "— means unscored, which is never zero."
    ]
    if facts.base_model:
        lines.append(f"Base model: {facts.base_model}.")
    if planned is not None and planned != summary.recorded_samples:
        lines.append(
            f"Incomplete ({facts.state}): {summary.recorded_samples:,} of {planned:,} planned samples have a record."
        )
    lines += caveats(summary)
    return element("header", element("h1", f"Evaluation {facts.evaluation_id}".strip()), *map(paragraph, lines))


def page_sections(summary: Summary, records: Sequence[Record]) -> list[Markup]:
    """Return all sections for which there is data. `records` have unique keys."""
    scores = main_scores(summary)
    candidates = (
        *_headlines(summary),
        _domains(summary),
        _judged(summary),
        *(_differences(summary, score) for score in scores),
        report_table(all_metrics_table(summary)),
        *(_datasets(summary, score) for score in scores),
        report_table(answers_by_dataset_table(summary)),
        report_table(retrieval_table(summary)),
        _confusion(summary),
        *resource_use_sections(summary.strategies, records),
        _bad_rows(summary),
    )
    return [candidate for candidate in candidates if candidate is not None]


def _headlines(summary: Summary) -> list[Markup | None]:
    failed = [cell for cell in summary.groups if cell.data == ALL and cell.failed]
    notes = [f"{cell.strategy}: {cell.failed:,} of {cell.samples:,} failed ({cell.failure})." for cell in failed]
    tables = [report_table(headline) for headline in headline_tables(summary)]
    return [*tables, *(element("p", note, class_="error") for note in notes)]


def _domains(summary: Summary) -> Markup | None:
    matrix = domain_matrix(summary)
    return None if matrix is None else report_table(domain_table(matrix))


def _judged(summary: Summary) -> Markup | None:
    if summary.judge is None:
        return None
    return report_table(judge_table(summary), element("p", judge_note(summary.judge), class_="note"))


def _datasets(summary: Summary, score: MainScore) -> Markup:
    groups = {
        dataset: [
            _bar(cell, score, colour)
            for colour, strategy in enumerate(summary.strategies)
            if (cell := summary.dataset(strategy, dataset)) is not None
        ]
        for dataset in datasets_with_score(summary, score)
    }
    title = f"By dataset: {score.name}"
    return section(f"{title}, %", *share_charts(groups, title))


def _bar(cell: Cell, score: MainScore, colour: int) -> Bar:
    if cell.mostly_failed:
        return Bar(cell.strategy, None, text=failed_text(cell), colour=colour)
    estimate = score.of(cell)
    return Bar(cell.strategy, estimate.value, estimate.low, estimate.high, interval_text(estimate), colour)


def _differences(summary: Summary, score: MainScore) -> Markup | None:
    differences = [(difference, score.of_difference(difference)) for difference in reportable_differences(summary)]
    ends = [
        abs(end)
        for _, estimate in differences
        for end in (estimate.value, estimate.low, estimate.high)
        if end is not None
    ]
    if not ends:
        return None
    limit = min(max(ends) * 1.05 or 0.01, 1.0)
    groups: dict[str, list[Bar]] = {}
    for difference, estimate in differences:
        if estimate.value is not None:
            text, colour = interval_text(estimate, signed=True), summary.strategies.index(difference.strategy)
            bar = Bar(difference.strategy, estimate.value, estimate.low, estimate.high, text, colour)
            groups.setdefault(f"minus {difference.reference}", []).append(bar)
    return section(
        f"Strategies compared: {score.name}, percentage points",
        bar_chart(groups, low=-limit, high=limit, title=f"Paired differences of {score.name}"),
        element("p", DIFFERENCES_NOTE, class_="note"),
    )


def _confusion(summary: Summary) -> Markup | None:
    """Return the confusion counts of retrieval; strategies with equal counts share a chart."""
    charts: list[tuple[list[str], dict[str, dict[str, int]]]] = []
    for cell in summary.groups:
        if cell.data != ALL or not cell.confusion or cell.mostly_failed:
            continue
        strategies = next((names for names, counts in charts if counts == cell.confusion), None)
        if strategies is None:
            charts.append(([cell.strategy], cell.confusion))
        else:
            strategies.append(cell.strategy)
    if not charts:
        return None
    parts: list[Markup] = []
    for strategies, counts in charts:
        parts += [paragraph(", ".join(strategies)), _confusion_chart(counts)]
    note = "Number of samples by the adapter trained for the data (rows) and the adapter retrieved first (columns)."
    return section("Retrieval: which adapter came first", *parts, element("p", note, class_="note"))


def _confusion_chart(counts: Mapping[str, Mapping[str, int]]) -> Markup:
    columns = list(dict.fromkeys([*counts, *(first for row in counts.values() for first in row)]))
    if len(columns) <= _MAX_HEATMAP_COLUMNS:
        return heatmap(counts, columns, "Adapter that came first, by true adapter")
    rows = [
        (true, ", ".join(f"{name} {count}" for name, count in sorted(row.items(), key=lambda pair: -pair[1])))
        for true, row in counts.items()
    ]
    return table(("true adapter", "first retrieved"), rows)


def _bad_rows(summary: Summary) -> Markup | None:
    if not summary.bad_row_count:
        return None
    listed = summary.facts.bad_rows[:MAX_LISTED]
    rows = [(bad.file, str(bad.line), bad.problem) for bad in listed]
    return section(
        f"Rows that could not be read: {summary.bad_row_count:,}",
        paragraph(f"The first {len(listed):,}:"),
        table(("file", "line", "problem"), rows),
    )
