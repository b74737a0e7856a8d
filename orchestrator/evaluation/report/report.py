"""The report: a summary as Markdown for people, and its headline as a plain table."""

from __future__ import annotations

import json

from orchestrator.evaluation.report.markdown import (
    UNSCORED_TEXT,
    counted,
    inline,
    percent,
    table,
)
from orchestrator.evaluation.report.matrix import TITLE, domains_of, interval_text, render_matrix
from orchestrator.evaluation.report.measurement import how_it_was_measured
from orchestrator.evaluation.report.summary import ALL, Difference, JudgeFacts, Summary, shared_floor
from orchestrator.evaluation.report.tables import (
    TEXT_COLUMNS,
    ReportTable,
    every_metric,
    group_title,
    main_score,
    of,
    retrieval,
    score_text,
    steps_right,
    timings,
    whole_answer_texts,
)

FLOOR_NAME = "constant template (floor)"
MAX_LISTED = 20


def headline(summary: Summary) -> ReportTable:
    """Return step accuracy under `action`, strategy by group of datasets, with the floor in the last row.

    Where no question is answered by actions, the scores of whole answers instead.
    """
    if summary.answers_are_texts:
        return _headline_of_texts(summary)
    groups = summary.group_names
    rows = [
        (
            _strategy_title(summary, strategy),
            *(score_text(summary.group(strategy, group), steps_right) for group in groups),
        )
        for strategy in summary.strategies
    ]
    floors = tuple(percent(shared_floor(of(summary.groups, group))) for group in groups)
    return ReportTable(
        title="Step accuracy, %",
        columns=("strategy", *map(group_title, groups)),
        rows=(*rows, (FLOOR_NAME, *floors)),
        note=(
            "Right steps in percent (action type and argument both right) ± standard error, clustered by episode. "
            f"The floor is the best fixed list of actions that sees neither query nor screen.{_failed_note(summary)}"
        ),
    )


def _headline_of_texts(summary: Summary) -> ReportTable:
    rows = [(_strategy_title(summary, cell.strategy), *whole_answer_texts(cell)) for cell in of(summary.groups, ALL)]
    note = f"Means over whole answers in percent ± standard error, clustered by episode.{_failed_note(summary)}"
    return ReportTable("Whole answers, %", ("strategy", *TEXT_COLUMNS), tuple(rows), note)


def render_markdown(summary: Summary) -> str:
    """Return the report as Markdown."""
    sections = [
        _opening(summary),
        _rendered(headline(summary)),
        _domains(summary),
        _intervals(summary),
        _rendered(every_metric(summary)),
        _texts(summary),
        _judged(summary),
        _datasets(summary),
        _rendered(retrieval(summary)),
        _rendered(timings(summary)),
        _failures(summary),
        _bad_rows(summary),
        how_it_was_measured(summary),
        _specification(summary),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _domains(summary: Summary) -> str:
    made = domains_of(summary)
    return "" if made is None else f"## {TITLE}\n\n{render_matrix(made).rstrip()}"


def _opening(summary: Summary) -> str:
    facts = summary.facts
    name = f" {inline(facts.evaluation_id)}" if facts.evaluation_id else ""
    model = f" Base model: {inline(facts.base_model)}." if facts.base_model else ""
    strategies, datasets = len(summary.strategies), len(summary.dataset_names)
    lines = [
        f"# Evaluation{name}",
        f"{counted(strategies, 'way')} to answer, compared on {counted(datasets, 'dataset')}: "
        f"{counted(summary.recorded_samples, 'sample')} in the `{facts.spec.protocol.value}` protocol, "
        f"{summary.failed_samples:,} of them failed; {counted(summary.bad_row_count, 'row')} of the datasets could not "
        f"be read.{model}",
    ]
    planned = facts.planned_samples
    if planned is not None and planned != summary.recorded_samples:
        lines.append(
            f"**Incomplete ({inline(facts.state)}): {summary.recorded_samples:,} of {planned:,} planned samples have a "
            "record.** Episodes with a missing step count in step shares only."
        )
    return "\n\n".join([*lines, *(f"**{inline(caveat)}**" for caveat in caveats(summary))])


def caveats(summary: Summary) -> list[str]:
    """Return what a reader must know before believing the numbers: sentences, of foreign text."""
    said = []
    if summary.changed_datasets:
        names = ", ".join(summary.changed_datasets)
        said.append(f"Changed while the job ran (its samples are those that were planned): {names}.")
    if summary.catalogue_changed:
        said.append("The catalogue of adapters changed while the job ran: answers came from more than one state of it.")
    if summary.stale_samples:
        count = counted(summary.stale_samples, "sample")
        said.append(f"For {count} the catalogue could not be reached: adapters were looked up in the last one known.")
    return said


def _rendered(found: ReportTable | None) -> str:
    if found is None:
        return ""
    rows = [(*map(inline, row[: found.text_columns]), *row[found.text_columns :]) for row in found.rows]
    return f"## {found.title}\n\n{table(found.columns, rows, found.text_columns)}\n\n{found.note}".rstrip()


def _intervals(summary: Summary) -> str:
    """Every strategy's interval, and its differences; a strategy compared with two others has two rows."""
    rows = []
    name, score = main_score(summary)
    for cell in of(summary.groups, ALL):
        compared: list[Difference | None] = [
            *(each for each in summary.differences if (each.strategy, each.data) == (cell.strategy, ALL))
        ]
        rows += [
            (
                inline(cell.strategy),
                score_text(cell, score, interval_text),
                "" if each is None else inline(each.reference),
                "" if each is None or summary.is_of_a_selection(each) else interval_text(each.steps, signed=True),
            )
            for each in (compared or [None])
        ]
    if not rows:
        return ""
    columns = ("strategy", f"{name}, %", "compared with", "difference, percentage points")
    return (
        f"## 95 % intervals and paired differences\n\n{table(columns, rows)}\n\n"
        "All datasets. Differences are of the questions that both answered, and have their own interval: one that "
        "holds zero shows no difference."
    )


def _texts(summary: Summary) -> str:
    cells = [cell for cell in (*of(summary.groups, ALL), *summary.datasets) if cell.texts.exact_match.count]
    if not cells:
        return ""
    rows = [
        (
            inline(cell.strategy),
            inline(cell.data),
            f"{cell.texts.exact_match.count:,}",
            *whole_answer_texts(cell),
        )
        for cell in cells
    ]
    columns = ("strategy", "data", "answers", *TEXT_COLUMNS)
    return (
        f"## Whole answers, %\n\n{table(columns, rows, text_columns=2)}\n\n"
        "Of the questions whose true answer is not in the action language."
    )


def _judged(summary: Summary) -> str:
    if summary.judge is None:
        return ""
    rows = [
        (inline(cell.strategy), f"{cell.judge.count:,}", score_text(cell, lambda cell: cell.judge))
        for cell in of(summary.groups, ALL)
    ]
    return (
        f"## Graded by a judge, %\n\n{table(('strategy', 'answers', 'mean grade'), rows)}\n\n"
        f"{inline(judge_note(summary.judge))}"
    )


def judge_note(facts: JudgeFacts) -> str:
    """Return who graded and what it took, a sentence or two of foreign text."""
    unscored = "".join(f" Unscored: {count:,} ({reason})." for reason, count in facts.unscored.items())
    return (
        f"Grades of {facts.model} at {facts.endpoint}, in percent of the best, ± standard error clustered by episode. "
        f"It took {counted(facts.calls, 'call')} ({facts.prompt_tokens:,} + {facts.completion_tokens:,} tokens); "
        f"{facts.cached:,} replies were known already.{unscored}"
    )


def _datasets(summary: Summary) -> str:
    if summary.answers_are_texts:
        return ""
    rows = []
    for name in summary.dataset_names:
        cells = of(summary.datasets, name)
        rows.append(
            (
                inline(name),
                f"{max((cell.action.steps.count for cell in cells), default=0):,}",
                *(score_text(summary.dataset(strategy, name), steps_right) for strategy in summary.strategies),
                percent(shared_floor(cells)),
            )
        )
    columns = ("dataset", "steps", *map(inline, summary.strategies), "floor")
    return f"## Step accuracy by dataset, %\n\n{table(columns, rows)}"


def _failures(summary: Summary) -> str:
    if not summary.failed_samples:
        return ""
    counts = ", ".join(f"{inline(reason)} {count:,}" for reason, count in summary.failure_reasons.items())
    listed = summary.failures[:MAX_LISTED]
    rows = [(inline(failure.key), inline(failure.reason), inline(failure.message)) for failure in listed]
    return (
        f"## Failed samples: {summary.failed_samples:,}\n\n"
        f"They are unscored: in no share above, neither right nor wrong. By reason: {counts}. Some of each:\n\n"
        f"{table(('sample', 'reason', 'message'), rows, text_columns=3)}"
    )


def _bad_rows(summary: Summary) -> str:
    if not summary.bad_row_count:
        return ""
    listed = summary.facts.bad_rows[:MAX_LISTED]
    lines = "\n".join(f"- {inline(bad.file)}:{bad.line}: {inline(bad.problem)}" for bad in listed)
    return f"## Rows that could not be read: {summary.bad_row_count:,}\n\nThe first {len(listed):,}:\n\n{lines}"


def _specification(summary: Summary) -> str:
    facts = summary.facts
    spec = {name: value for name, value in facts.spec.to_json().items() if name != "datasets"}
    files = {file.name: file for file in facts.files}
    rows = []
    for dataset in facts.spec.datasets:
        file = files.get(dataset.name)
        read = (f"{file.episodes:,}", f"{file.bad_rows:,}", file.sha256[:16]) if file else (UNSCORED_TEXT,) * 3
        rows.append((*map(inline, (dataset.name, dataset.uri, dataset.kind, dataset.adapter_id)), *read))
    parts = [
        "## What was asked",
        table(("dataset", "file", "kind", "adapter", "episodes", "bad rows", "SHA-256"), rows, text_columns=4),
        f"```json\n{json.dumps(spec, indent=2)}\n```",
    ]
    ran = {
        "loraretriever": facts.version,
        "base model": facts.base_model,
        "its files' digest": facts.base_model_revision,
        "type of its weights": facts.dtype,
        "embedder": facts.embedder,
        "catalogue when accepted": facts.catalogue_revision,
        "catalogues that answered": ", ".join(summary.catalogue_revisions),
    }
    known = [f"- {name}: {inline(value)}" for name, value in ran.items() if value]
    if known:
        parts.append("What ran:\n\n" + "\n".join(known))
    return "\n\n".join(parts)


def _strategy_title(summary: Summary, strategy: str) -> str:
    cell = summary.group(strategy, ALL)
    return f"{strategy} ({cell.failed:,} failed)" if cell is not None and cell.failed else strategy


def _failed_note(summary: Summary) -> str:
    if not summary.failed_samples:
        return ""
    return f" Failed, and so unscored: {counted(summary.failed_samples, 'sample')}."
