"""The report: a summary as Markdown for people, and its headline as a plain table."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from orchestrator.evaluation.markdown import (
    UNSCORED_TEXT,
    counted,
    decimal_with_error,
    inline,
    milliseconds,
    percent,
    percent_with_error,
    table,
)
from orchestrator.evaluation.matrix import interval_text
from orchestrator.evaluation.measurement import how_it_was_measured
from orchestrator.evaluation.metrics.uncertainty import Estimate
from orchestrator.evaluation.summary import ALL, Cell, Difference, JudgeFacts, Summary

FLOOR_NAME = "constant template (floor)"
TEXT_COLUMNS = ("exact match", "ROUGE-L", "BLEU")
MAX_LISTED = 20

_GROUP_TITLES = {"app": "apps", "category": "categories"}


@dataclass(frozen=True)
class HeadlineTable:
    """The headline as ready text: a row for each strategy, and one for the floor where there is one. `note` says what
    the numbers are."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str


def headline(summary: Summary) -> HeadlineTable:
    """Return step accuracy under `action`, strategy by group of datasets, with the floor in the last row.

    Where no question is answered by actions, the scores of whole answers instead.
    """
    if summary.answers_are_texts:
        return _headline_of_texts(summary)
    groups = summary.group_names
    rows = [
        (
            _strategy_title(summary, strategy),
            *(
                _text(summary.group(strategy, group), lambda cell: percent_with_error(cell.action.steps))
                for group in groups
            ),
        )
        for strategy in summary.strategies
    ]
    floors = tuple(_floor(_cells(summary.groups, group)) for group in groups)
    return HeadlineTable(
        title="Step accuracy, %",
        columns=("strategy", *(_GROUP_TITLES.get(group, group) for group in groups)),
        rows=(*rows, (FLOOR_NAME, *floors)),
        note=(
            "Right steps in percent (action type and argument both right) ± standard error, clustered by episode. "
            f"The floor is the best fixed list of actions that sees neither query nor screen.{_failed_note(summary)}"
        ),
    )


def _headline_of_texts(summary: Summary) -> HeadlineTable:
    rows = [
        (_strategy_title(summary, cell.strategy), *map(percent_with_error, text_scores(cell)))
        for cell in _cells(summary.groups, ALL)
    ]
    note = f"Means over whole answers in percent ± standard error, clustered by episode.{_failed_note(summary)}"
    return HeadlineTable("Whole answers, %", ("strategy", *TEXT_COLUMNS), tuple(rows), note)


def text_scores(cell: Cell) -> tuple[Estimate, ...]:
    """Return the scores of whole answers, in the order of TEXT_COLUMNS."""
    return cell.texts.exact_match, cell.texts.rouge_l, cell.texts.bleu


def render_markdown(summary: Summary) -> str:
    """Return the report as Markdown."""
    sections = [
        _opening(summary),
        _headline(summary),
        _intervals(summary),
        _strategies(summary),
        _texts(summary),
        _judged(summary),
        _datasets(summary),
        _retrieval(summary),
        _timings(summary),
        _failures(summary),
        _bad_rows(summary),
        how_it_was_measured(summary),
        _specification(summary),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


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


def _headline(summary: Summary) -> str:
    head = headline(summary)
    rows = [(inline(name), *cells) for name, *cells in head.rows]
    return f"## {head.title}\n\n{table(head.columns, rows)}\n\n{head.note}"


def _intervals(summary: Summary) -> str:
    """Every strategy's interval, and its differences; a strategy compared with two others has two rows."""
    rows = []
    for cell in _cells(summary.groups, ALL):
        compared: list[Difference | None] = [
            *(each for each in summary.differences if (each.strategy, each.data) == (cell.strategy, ALL))
        ]
        rows += [
            (
                inline(cell.strategy),
                interval_text(cell.action.steps),
                "" if each is None else inline(each.reference),
                "" if each is None else interval_text(each.steps, signed=True),
            )
            for each in (compared or [None])
        ]
    if not rows:
        return ""
    columns = ("strategy", "steps right, %", "compared with", "difference, percentage points")
    return (
        f"## 95 % intervals and paired differences\n\n{table(columns, rows)}\n\n"
        "All datasets. Differences are of the questions that both answered, and have their own interval: one that "
        "holds zero shows no difference."
    )


def _strategies(summary: Summary) -> str:
    columns = (
        "strategy", "samples", "failed", "steps right", "floor", "episodes right", "floor",
        "steps, `legacy`", "floor", "episodes, `legacy`", "floor",
    )  # fmt: skip
    rows = [
        (
            inline(cell.strategy),
            f"{cell.samples:,}",
            f"{cell.failed:,}",
            percent_with_error(cell.action.steps),
            percent(cell.action.step_floor),
            percent_with_error(cell.action.episodes),
            percent(cell.action.episode_floor),
            percent_with_error(cell.legacy.steps),
            percent(cell.legacy.step_floor),
            percent_with_error(cell.legacy.episodes),
            percent(cell.legacy.episode_floor),
        )
        for cell in _cells(summary.groups, ALL)
    ]
    return f"## All datasets, every metric, %\n\n{table(columns, rows)}" if rows else ""


def _texts(summary: Summary) -> str:
    cells = [cell for cell in (*_cells(summary.groups, ALL), *summary.datasets) if cell.texts.exact_match.count]
    if not cells:
        return ""
    rows = [
        (
            inline(cell.strategy),
            inline(cell.data),
            f"{cell.texts.exact_match.count:,}",
            *map(percent_with_error, text_scores(cell)),
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
        (inline(cell.strategy), f"{cell.judge.count:,}", percent_with_error(cell.judge))
        for cell in _cells(summary.groups, ALL)
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
    rows = []
    for name in summary.dataset_names:
        cells = _cells(summary.datasets, name)
        rows.append(
            (
                inline(name),
                f"{max((cell.action.steps.count for cell in cells), default=0):,}",
                *(
                    _text(summary.dataset(strategy, name), lambda cell: percent_with_error(cell.action.steps))
                    for strategy in summary.strategies
                ),
                _floor(cells),
            )
        )
    columns = ("dataset", "steps", *map(inline, summary.strategies), "floor")
    return f"## Step accuracy by dataset, %\n\n{table(columns, rows)}"


def _retrieval(summary: Summary) -> str:
    cells = [cell for cell in summary.groups if cell.retrieval.at_1.count]
    if not cells:
        return ""
    rows = [
        (
            inline(cell.strategy),
            _GROUP_TITLES.get(cell.data, inline(cell.data)),
            f"{cell.retrieval.at_1.count:,}",
            percent_with_error(cell.retrieval.at_1),
            percent_with_error(cell.retrieval.at_3),
            decimal_with_error(cell.retrieval.mean_reciprocal_rank),
        )
        for cell in cells
    ]
    columns = ("strategy", "data", "samples", "@1, %", "@3, %", "mean reciprocal rank")
    return (
        f"## Was the right adapter retrieved?\n\n{table(columns, rows, text_columns=2)}\n\n"
        "Where the adapter trained for the dataset is known and was not hidden from retrieval."
    )


def _timings(summary: Summary) -> str:
    cells = [cell for cell in _cells(summary.groups, ALL) if cell.timings.total_s is not None]
    rows = [
        (
            inline(cell.strategy),
            milliseconds(cell.timings.total_s),
            milliseconds(cell.timings.retrieval_s),
            milliseconds(cell.timings.embed_s),
            milliseconds(cell.timings.search_s),
            milliseconds(cell.timings.queue_s),
            milliseconds(cell.timings.prefill_s),
            milliseconds(cell.timings.decode_s),
        )
        for cell in cells
    ]
    columns = ("strategy", "whole answer", "retrieval", "of it embed", "search", "queue", "prefill", "decode")
    return f"## Time an answer, mean ms\n\n{table(columns, rows)}" if rows else ""


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


def _cells(cells: Iterable[Cell], data: str) -> list[Cell]:
    return [cell for cell in cells if cell.data == data]


def _text(cell: Cell | None, text: Callable[[Cell], str]) -> str:
    return UNSCORED_TEXT if cell is None else text(cell)


def _floor(cells: Iterable[Cell]) -> str:
    """The highest floor of the strategies: they differ only where different samples failed."""
    floors = [cell.action.step_floor for cell in cells if cell.action.step_floor is not None]
    return percent(max(floors, default=None))
