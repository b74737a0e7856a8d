"""The sections of the page that are numbers and charts."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.evaluation.records import Record
from orchestrator.evaluation.report.comparison_tables import DIFFERENCES_NOTE, judge_table, reportable_differences
from orchestrator.evaluation.report.formatting import interval_text, pluralize
from orchestrator.evaluation.report.headline_tables import headline_tables
from orchestrator.evaluation.report.html.charts import Bar, bar_chart, heatmap, share_charts
from orchestrator.evaluation.report.html.markup import Markup, element, paragraph, report_table, section, table
from orchestrator.evaluation.report.html.resource_use import resource_use_sections
from orchestrator.evaluation.report.markdown_report import MAX_LISTED, caveats, judge_note
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

MAX_CONFUSION = 60


def page_header(summary: Summary) -> Markup:
    """Return the title, and what was compared."""
    facts = summary.facts
    planned = facts.planned_samples
    lines = [
        f"{pluralize(len(summary.strategies), 'way')} to answer on "
        f"{pluralize(len(summary.dataset_names), 'dataset')}, {pluralize(summary.recorded_samples, 'sample')} in the "
        f"{facts.spec.protocol.value} protocol; {summary.failed_samples:,} failed. "
        "— means unscored, which is never zero."
    ]
    if facts.base_model:
        lines.append(f"Base model: {facts.base_model}.")
    if planned is not None and planned != summary.recorded_samples:
        lines.append(f"Incomplete ({facts.state}): {summary.recorded_samples:,} of {planned:,} samples have a record.")
    lines += caveats(summary)
    return element("header", element("h1", f"Evaluation {facts.evaluation_id}".strip()), *map(paragraph, lines))


def page_sections(summary: Summary, records: Sequence[Record]) -> list[Markup]:
    """Return every section that the records (each key once) can fill."""
    scores = main_scores(summary)
    found = (
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
    return [each for each in found if each is not None]


def _headlines(summary: Summary) -> list[Markup | None]:
    failed = [cell for cell in summary.groups if cell.data == ALL and cell.failed]
    notes = [f"{cell.strategy}: {cell.failed:,} of {cell.samples:,} failed ({cell.failure})." for cell in failed]
    found = [report_table(each) for each in headline_tables(summary)]
    return [*found, *(element("p", note, class_="error") for note in notes)]


def _domains(summary: Summary) -> Markup | None:
    made = domain_matrix(summary)
    return None if made is None else report_table(domain_table(made))


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
    found = score.of(cell)
    return Bar(cell.strategy, found.value, found.low, found.high, interval_text(found), colour)


def _differences(summary: Summary, score: MainScore) -> Markup | None:
    found = [(each, score.of_difference(each)) for each in reportable_differences(summary)]
    ends = [
        abs(end) for _, estimate in found for end in (estimate.value, estimate.low, estimate.high) if end is not None
    ]
    if not ends:
        return None
    reach = min(max(ends) * 1.05 or 0.01, 1.0)
    groups: dict[str, list[Bar]] = {}
    for each, estimate in found:
        if estimate.value is not None:
            text, colour = interval_text(estimate, signed=True), summary.strategies.index(each.strategy)
            bar = Bar(each.strategy, estimate.value, estimate.low, estimate.high, text, colour)
            groups.setdefault(f"less {each.reference}", []).append(bar)
    return section(
        f"Strategies compared: {score.name}, percentage points",
        bar_chart(groups, low=-reach, high=reach, title=f"Paired differences of {score.name}"),
        element("p", DIFFERENCES_NOTE, class_="note"),
    )


def _confusion(summary: Summary) -> Markup | None:
    """Strategies that retrieve alike share a chart."""
    alike: list[tuple[list[str], dict[str, dict[str, int]]]] = []
    for cell in summary.groups:
        if cell.data != ALL or not cell.confusion or cell.mostly_failed:
            continue
        same = next((names for names, counts in alike if counts == cell.confusion), None)
        if same is None:
            alike.append(([cell.strategy], cell.confusion))
        else:
            same.append(cell.strategy)
    if not alike:
        return None
    shown: list[Markup] = []
    for names, counts in alike:
        shown.append(paragraph(", ".join(names)))
        columns = list(dict.fromkeys([*counts, *(found for row in counts.values() for found in row)]))
        if len(columns) <= MAX_CONFUSION:
            shown.append(heatmap(counts, columns, "Adapter that came first, by true adapter"))
        else:
            rows = [
                (true, ", ".join(f"{name} {count}" for name, count in sorted(row.items(), key=lambda pair: -pair[1])))
                for true, row in counts.items()
            ]
            shown.append(table(("true adapter", "first retrieved"), rows))
    note = "Rows: the adapter trained for the data; columns: the one retrieved first; samples counted."
    return section("Retrieval: which adapter came first", *shown, element("p", note, class_="note"))


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
