"""Tables of scores and of comparisons, of results that exist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from orchestrator.cli import output as console
from orchestrator.evaluation.compare import Comparison
from orchestrator.evaluation.report.formatting import interval_text
from orchestrator.evaluation.result_files import FileScore, MetricName

NAME_WIDTH = 20


@dataclass(frozen=True)
class Scored:
    """The score of a source's results, those of `strategy` where it has several; `cost` is what a judge took."""

    source: str
    strategy: str | None
    score: FileScore
    cost: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the score as JSON values."""
        return {"file": self.source, "strategy": self.strategy, **self.score.to_json(), **self.cost}


def print_scores(scored: Sequence[Scored], as_json: bool) -> None:
    """Print the scores: with `as_json` an object for one, a list for several."""
    if as_json:
        objects = [each.to_json() for each in scored]
        console.print_json(objects[0] if len(objects) == 1 else objects)
        return
    names = distinct_names([each.source for each in scored])
    named = [
        (f"{name}: {each.strategy}" if each.strategy else name, each.score)
        for name, each in zip(names, scored, strict=True)
    ]
    for rows, make in (
        ([each for each in named if not each[1].scores_texts], _table_of_steps),
        ([each for each in named if each[1].scores_texts], _table_of_answers),
    ):
        if rows:
            console.results().print(make(rows))
    for cost in (each.cost for each in scored if each.cost):
        unscored = "".join(f"; unscored: {count} ({reason})" for reason, count in cost["judge_unscored"].items())
        console.note(
            f"judge: {cost['judge_calls']} calls, {cost['judge_cached']} replies known already, "
            f"{cost['judge_prompt_tokens']} + {cost['judge_completion_tokens']} tokens{unscored}"
        )


def print_compared(found: Sequence[Comparison], sources: tuple[str, str], as_json: bool) -> None:
    """Print the differences between two sources, and what a reader must know before believing them."""
    if as_json:
        console.print_json(found)
        return
    unpaired = {
        "left out": [each.left_out for each in found],
        "only in\nfirst": [each.only_first for each in found],
        "only in\nsecond": [each.only_second for each in found],
    }
    shown = {name: counts for name, counts in unpaired.items() if any(counts)}
    scores = ("metric", "first, %", "second, %", "second - first")
    table = _table("first", "second", *scores, "pairs", "episodes", *shown, names=2)
    names = distinct_names(sources)
    for index, each in enumerate(found):
        table.add_row(
            names[0] if each.first == sources[0] else f"{names[0]}: {each.first}",
            names[1] if each.second == sources[1] else f"{names[1]}: {each.second}",
            each.metric,
            interval_text(each.first_score),
            interval_text(each.second_score),
            interval_text(each.difference, signed=True),
            str(each.difference.count),
            str(each.difference.clusters),
            *(str(counts[index]) for counts in shown.values()),
        )
    console.results().print(table)
    for note in dict.fromkeys(note for each in found for note in each.notes):
        console.note(note)


def distinct_names(sources: Sequence[str]) -> list[str]:
    """Return paths without the folders that all of them are in; what is no path stays as it is."""
    parts = [source.rstrip("/").split("/") for source in sources]
    shared = 0
    while len(parts) > 1 and all(len(one) > shared + 1 and one[shared] == parts[0][shared] for one in parts):
        shared += 1
    return ["/".join(one[shared:]) for one in parts]


def _table_of_steps(rows: Sequence[tuple[str, FileScore]]) -> Table:
    with_parts = any(found.metric == MetricName.ACTION for _, found in rows)
    parts = ("type right", "argument right") if with_parts else ()
    counts = ("steps", "episodes", "failed")
    table = _table("file", "metric", "steps right", "floor", *parts, "episodes right", "floor", *counts, names=1)
    for name, found in rows:
        shares = (_percent(found.action_type), _percent(found.argument)) if with_parts else ()
        table.add_row(
            name,
            found.metric,
            _percent(found.step_accuracy, found.step_standard_error),
            _percent(found.floor),
            *shares,
            _percent(found.episode_accuracy, found.episode_standard_error),
            _percent(found.episode_floor),
            *map(str, (found.step_count, found.episode_count, found.failed_count)),
        )
    return table


def _table_of_answers(rows: Sequence[tuple[str, FileScore]]) -> Table:
    table = _table("file", "metric", "mean", "answers", "failed", names=1)
    for name, found in rows:
        mean = _percent(found.step_accuracy, found.step_standard_error)
        table.add_row(name, found.metric, mean, str(found.step_count), str(found.failed_count))
    return table


def _table(*columns: str, names: int) -> Table:
    """Return a table whose first columns hold names, never cut but folded."""
    table = Table()
    for index, column in enumerate(columns):
        table.add_column(
            column, overflow="fold" if index < names else "ellipsis", min_width=NAME_WIDTH if index < names else None
        )
    return table


def _percent(value: float | None, error: float | None = None) -> str:
    if value is None:
        return "unscored"
    return f"{value:.1%}" + (f" ± {error:.1%}" if error else "")
