"""Tables of headlines, scores and comparisons in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from orchestrator.cli import output as console
from orchestrator.evaluation.compare import Comparison
from orchestrator.evaluation.report.formatting import ReportTable, interval_text
from orchestrator.evaluation.result_scores import FileScore, MetricName

#: Narrowest column of names: the ids of adapters and jobs mostly fit.
_NAME_WIDTH = 20


@dataclass(frozen=True)
class SourceScore:
    """The score of a source, or of one strategy in it. `cost` is what the judge's calls took, where there is one."""

    source: str
    strategy: str | None
    score: FileScore
    cost: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the score as JSON values."""
        return {"file": self.source, "strategy": self.strategy, **self.score.to_json(), **self.cost}


def headline_table(table: ReportTable) -> Table:
    """Return the headline of a report."""
    headline = Table(title=table.title, caption=table.note, caption_justify="left")
    for index, column in enumerate(table.columns):
        headline.add_column(column, justify="left" if index == 0 else "right")
    for row in table.rows:
        headline.add_row(*row)
    return headline


def print_scores(scores: Sequence[SourceScore], as_json: bool) -> None:
    """Print the scores: with `as_json` an object for one, a list for several."""
    if as_json:
        objects = [score.to_json() for score in scores]
        console.print_json(objects[0] if len(objects) == 1 else objects)
        return
    names = distinct_names([score.source for score in scores])
    rows = [
        (f"{name}: {score.strategy}" if score.strategy else name, score.score)
        for name, score in zip(names, scores, strict=True)
    ]
    if steps := [row for row in rows if not row[1].scores_texts]:
        console.results().print(_steps_table(steps))
    if answers := [row for row in rows if row[1].scores_texts]:
        console.results().print(_answers_table(answers))
    for cost in (score.cost for score in scores if score.cost):
        unscored = "".join(f"; unscored: {count} ({reason})" for reason, count in cost["judge_unscored"].items())
        console.note(
            f"judge: {cost['judge_calls']} calls, {cost['judge_cached']} cached replies, "
            f"{cost['judge_prompt_tokens']} + {cost['judge_completion_tokens']} tokens{unscored}"
        )


def print_comparisons(comparisons: Sequence[Comparison], sources: tuple[str, str], as_json: bool) -> None:
    """Print the differences between two sources, and what limits them."""
    if as_json:
        console.print_json(comparisons)
        return
    unpaired = {
        "left out": [comparison.left_out for comparison in comparisons],
        "only in\nfirst": [comparison.only_first for comparison in comparisons],
        "only in\nsecond": [comparison.only_second for comparison in comparisons],
    }
    shown = {name: counts for name, counts in unpaired.items() if any(counts)}
    scores = ("metric", "first, %", "second, %", "second - first")
    table = _table("first", "second", *scores, "pairs", "episodes", *shown, names=2)
    names = distinct_names(sources)
    for index, comparison in enumerate(comparisons):
        table.add_row(
            names[0] if comparison.first == sources[0] else f"{names[0]}: {comparison.first}",
            names[1] if comparison.second == sources[1] else f"{names[1]}: {comparison.second}",
            comparison.metric,
            interval_text(comparison.first_score),
            interval_text(comparison.second_score),
            interval_text(comparison.difference, signed=True),
            str(comparison.difference.count),
            str(comparison.difference.clusters),
            *(str(counts[index]) for counts in shown.values()),
        )
    console.results().print(table)
    for note in dict.fromkeys(note for comparison in comparisons for note in comparison.notes):
        console.note(note)


def distinct_names(sources: Sequence[str]) -> list[str]:
    """Return paths without the folders that they all share; anything else is returned unchanged."""
    paths = [source.rstrip("/").split("/") for source in sources]
    shared = 0
    while len(paths) > 1 and all(len(path) > shared + 1 and path[shared] == paths[0][shared] for path in paths):
        shared += 1
    return ["/".join(path[shared:]) for path in paths]


def _steps_table(rows: Sequence[tuple[str, FileScore]]) -> Table:
    with_parts = any(score.metric == MetricName.ACTION for _, score in rows)
    parts = ("type right", "argument right") if with_parts else ()
    counts = ("steps", "episodes", "failed")
    table = _table("file", "metric", "steps right", "floor", *parts, "episodes right", "floor", *counts, names=1)
    for name, score in rows:
        shares = (_percent(score.action_type), _percent(score.argument)) if with_parts else ()
        table.add_row(
            name,
            score.metric,
            _percent(score.step_accuracy, score.step_standard_error),
            _percent(score.floor),
            *shares,
            _percent(score.episode_accuracy, score.episode_standard_error),
            _percent(score.episode_floor),
            *map(str, (score.step_count, score.episode_count, score.failed_count)),
        )
    return table


def _answers_table(rows: Sequence[tuple[str, FileScore]]) -> Table:
    table = _table("file", "metric", "mean", "answers", "failed", names=1)
    for name, score in rows:
        mean = _percent(score.step_accuracy, score.step_standard_error)
        table.add_row(name, score.metric, mean, str(score.step_count), str(score.failed_count))
    return table


def _table(*columns: str, names: int) -> Table:
    """Return a table whose first `names` columns are folded, never cut."""
    table = Table()
    for index, column in enumerate(columns):
        table.add_column(
            column, overflow="fold" if index < names else "ellipsis", min_width=_NAME_WIDTH if index < names else None
        )
    return table


def _percent(value: float | None, error: float | None = None) -> str:
    if value is None:
        return "unscored"
    return f"{value:.1%}" + (f" ± {error:.1%}" if error else "")
