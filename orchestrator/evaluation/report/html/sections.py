"""The sections of the page that are numbers and charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from orchestrator.evaluation.records import Record
from orchestrator.evaluation.report.html.charts import Bar, bars, heatmap, legend, parts
from orchestrator.evaluation.report.html.markup import Markup, element, paragraph, report_table, section, table
from orchestrator.evaluation.report.html.measures import PHASES, Measures, measures, percentile_95
from orchestrator.evaluation.report.markdown import UNSCORED_TEXT, counted, milliseconds
from orchestrator.evaluation.report.matrix import COLUMNS, NOTE, TITLE, domains_of, interval_text, rows_of
from orchestrator.evaluation.report.report import caveats, headline, judge_note
from orchestrator.evaluation.report.summary import ALL, Cell, Difference, Summary
from orchestrator.evaluation.report.tables import (
    TEXT_COLUMNS,
    every_metric,
    failed_text,
    main_score,
    retrieval,
    score_text,
    steps_right,
    whole_answer_texts,
)

MAX_CONFUSION = 60
MAX_BARS = 60


def opening(summary: Summary) -> Markup:
    """Return the title, and what was compared."""
    facts = summary.facts
    planned = facts.planned_samples
    lines = [
        f"{counted(len(summary.strategies), 'way')} to answer on "
        f"{counted(len(summary.dataset_names), 'dataset')}, {counted(summary.recorded_samples, 'sample')} in the "
        f"{facts.spec.protocol.value} protocol; {summary.failed_samples:,} failed (unscored, never zero), "
        f"{counted(summary.bad_row_count, 'row')} could not be read."
    ]
    if facts.base_model:
        lines.append(f"Base model: {facts.base_model}.")
    if planned is not None and planned != summary.recorded_samples:
        lines.append(f"Incomplete ({facts.state}): {summary.recorded_samples:,} of {planned:,} samples have a record.")
    lines += caveats(summary)
    return element("header", element("h1", f"Evaluation {facts.evaluation_id}".strip()), *map(paragraph, lines))


def sections(summary: Summary, records: Sequence[Record]) -> list[Markup]:
    """Return every section that the records (each key once) can fill."""
    found_in = measures(records)
    measured = {strategy: found_in[strategy] for strategy in summary.strategies if strategy in found_in}
    found = (
        None if summary.answers_are_texts else _headline(summary),
        _domains(summary),
        _texts(summary),
        _judged(summary),
        _differences(summary),
        report_table(every_metric(summary)),
        _datasets(summary),
        report_table(retrieval(summary)),
        _confusion(summary),
        _weights(measured),
        _latency(measured),
        _cost(measured),
    )
    return [each for each in found if each is not None]


def _headline(summary: Summary) -> Markup:
    head = headline(summary)
    rows = [
        (
            strategy,
            *(score_text(summary.group(strategy, group), steps_right, interval_text) for group in summary.group_names),
        )
        for strategy in summary.strategies
    ]
    floor = head.rows[-1]
    failed = [cell for cell in summary.groups if cell.data == ALL and cell.failed]
    notes = [f"{cell.strategy}: {cell.failed:,} of {cell.samples:,} failed ({cell.failure})." for cell in failed]
    return section(
        "Step accuracy, %",
        table(head.columns, [*rows, floor]),
        element(
            "p",
            "Right steps (action type and argument) with 95 % intervals, clustered by episode. The floor is the best "
            "fixed list of actions that sees neither query nor screen. — is unscored.",
            class_="note",
        ),
        *(element("p", note, class_="error") for note in notes),
    )


def _domains(summary: Summary) -> Markup | None:
    made = domains_of(summary)
    if made is None:
        return None
    return section(TITLE, table(COLUMNS, rows_of(made)), element("p", NOTE, class_="note"))


def _texts(summary: Summary) -> Markup | None:
    cells = [cell for cell in summary.groups if cell.data == ALL and cell.texts.exact_match.count]
    if not cells:
        return None
    rows = [
        (cell.strategy, f"{cell.texts.exact_match.count:,}", *whole_answer_texts(cell, interval_text)) for cell in cells
    ]
    return section(
        "Whole answers, %",
        table(("strategy", "answers", *TEXT_COLUMNS), rows),
        element(
            "p",
            "Questions whose true answer is not in the action language: mean scores with 95 % intervals, clustered by "
            "episode.",
            class_="note",
        ),
    )


def _judged(summary: Summary) -> Markup | None:
    if summary.judge is None:
        return None
    rows = [
        (cell.strategy, f"{cell.judge.count:,}", score_text(cell, lambda cell: cell.judge, interval_text))
        for cell in summary.groups
        if cell.data == ALL
    ]
    return section(
        "Graded by a judge, %",
        table(("strategy", "answers", "mean grade"), rows),
        element("p", judge_note(summary.judge), class_="note"),
    )


def _datasets(summary: Summary) -> Markup:
    name, _ = main_score(summary)
    groups = {
        dataset: [
            _bar(summary, cell, colour)
            for colour, strategy in enumerate(summary.strategies)
            if (cell := summary.dataset(strategy, dataset)) is not None
        ]
        for dataset in summary.dataset_names
    }
    title = f"By dataset: {name}"
    return section(f"{title}, %", *_shares(groups, title))


def _shares(groups: Mapping[str, Sequence[Bar]], title: str) -> list[Markup]:
    """Return bars of shares in [0, 1]; where there are many, each group folded."""
    if sum(map(len, groups.values())) <= MAX_BARS:
        return [bars(groups, low=0, high=1, title=title)]
    return [
        element("details", element("summary", name), bars({"": members}, low=0, high=1, title=f"{title}: {name}"))
        for name, members in groups.items()
    ]


def _bar(summary: Summary, cell: Cell, colour: int) -> Bar:
    _, score = main_score(summary)
    if cell.mostly_failed:
        return Bar(cell.strategy, None, text=failed_text(cell), colour=colour)
    found = score(cell)
    return Bar(cell.strategy, found.value, found.low, found.high, interval_text(found), colour)


def _differences(summary: Summary) -> Markup | None:
    rows = [
        each
        for each in summary.differences
        if each.data == ALL and each.steps.value is not None and not summary.is_of_a_selection(each)
    ]
    if not rows:
        return None
    ends = [abs(end) for each in rows for end in (each.steps.value, each.steps.low, each.steps.high) if end is not None]
    reach = min(max(ends, default=0.0) * 1.05 or 0.01, 1.0)
    groups: dict[str, list[Bar]] = {}
    for each in rows:
        groups.setdefault(f"less {each.reference}", []).append(_difference_bar(summary, each))
    return section(
        "Strategies compared, percentage points",
        bars(groups, low=-reach, high=reach, title="Paired differences of steps right"),
        element(
            "p",
            f"Difference of {main_score(summary)[0]} on the questions that both answered, with its 95 % interval, "
            "clustered by episode. An interval that holds zero shows no difference. Strategies most of whose samples "
            "failed are not compared.",
            class_="note",
        ),
    )


def _difference_bar(summary: Summary, difference: Difference) -> Bar:
    steps, colour = difference.steps, summary.strategies.index(difference.strategy)
    return Bar(difference.strategy, steps.value, steps.low, steps.high, interval_text(steps, signed=True), colour)


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


def _weights(measured: dict[str, Measures]) -> Markup | None:
    groups: dict[str, list[Bar]] = {}
    for colour, (strategy, of) in enumerate(measured.items()):
        if not of.weights:
            continue
        counts = of.weight_counts()
        groups[f"{strategy} ({len(of.weights):,} weights)"] = [
            Bar(
                f"{index / 10:.1f} to {(index + 1) / 10:.1f}", count / len(of.weights), text=f"{count:,}", colour=colour
            )
            for index, count in enumerate(counts)
            if count
        ]
    if not groups:
        return None
    return section(
        "Weights of the adapters applied",
        *_shares(groups, "Share of weights in each tenth"),
        element("p", "How many of the weights applied lie in each tenth of [0, 1].", class_="note"),
    )


def _latency(measured: dict[str, Measures]) -> Markup | None:
    timed = {strategy: of for strategy, of in measured.items() if of.seconds.get("total")}
    if not timed:
        return None
    charted = {
        strategy: [(colour, of.mean_s(phase) or 0.0) for colour, phase in enumerate(PHASES)]
        for strategy, of in timed.items()
    }
    rows = [
        (
            strategy,
            milliseconds(of.mean_s("total")),
            milliseconds(percentile_95(of.seconds["total"])),
            *(milliseconds(of.mean_s(phase)) for phase in PHASES),
        )
        for strategy, of in timed.items()
    ]
    absent = [phase for phase in PHASES if not any(of.seconds.get(phase) for of in timed.values())]
    note = "A phase that another strategy had paid for already, as retrieval shared by strategies, is not in its mean."
    if absent:
        note += f" Not recorded in this job: {', '.join(absent)}."
    return section(
        "Where the time goes",
        legend(PHASES),
        parts(charted, "Mean seconds of each phase"),
        table(("strategy, ms", "whole answer", "95th percentile", *PHASES), rows),
        element("p", f"Means over the samples in which a phase was measured. {note}", class_="note"),
    )


def _cost(measured: dict[str, Measures]) -> Markup | None:
    rows = [
        (
            strategy,
            *(_mean(of.tokens.get(name, [])) for name in ("prompt_tokens", "image_tokens", "completion_tokens")),
            milliseconds(fmean(of.generation_s) if of.generation_s else None),
        )
        for strategy, of in measured.items()
        if of.tokens or of.generation_s
    ]
    if not rows:
        return None
    columns = ("mean of a sample", "tokens in", "of images", "tokens out", "generation, ms")
    return section("Cost of a sample", table(columns, rows))


def _mean(values: Sequence[int]) -> str:
    return f"{fmean(values):,.1f}" if values else UNSCORED_TEXT
