"""Prints the results of an evaluation, as tables for people or as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from rich.console import Console
from rich.table import Table

from infra.contract.retrieval import RetrievalStrategy, Weighting
from retrieval_service.evaluation.intervals import Difference
from retrieval_service.evaluation.outcomes import Outcome, Scores, as_json, compute_scores, labels_of

_MAX_CONFUSED_PAIRS = 5
_MAX_TABLE_LABELS = 24  # a wider matrix does not fit a terminal of 160 columns
_PIPE_WIDTH = 160  # columns of output that goes to a file or a pipe


@dataclass(frozen=True)
class StrategyReport:
    """The scores of one strategy for each weighting; ranks are the same in all.

    `best_temperature` is the softmax temperature whose weights predict the right adapter best, and `best_ece` the error
    at it; None if not measured. `single` are adapters with only one vector, which cannot be left out. `probability` are
    the scores with the weights of that weighting over all adapters. `twins` counts queries that another adapter has
    too. `curve` has scores by number of examples. `difference` is that of at_1 from the first strategy's.
    """

    strategy: RetrievalStrategy
    by_weighting: Mapping[Weighting, Scores]
    temperature: float
    best_temperature: float | None
    best_ece: float | None
    single: tuple[str, ...]
    probability: Scores | None = None
    twins: int = 0
    curve: Mapping[int, Scores] = field(default_factory=dict)
    open_set_auroc: float | None = None
    difference: Difference | None = None

    @classmethod
    def of(
        cls,
        strategy: RetrievalStrategy,
        outcomes: Mapping[Weighting, Sequence[Outcome]],
        temperature: float,
        *,
        best_temperature: float | None = None,
        best_ece: float | None = None,
        single: tuple[str, ...] = (),
        probability: Scores | None = None,
        twins: int = 0,
    ) -> Self:
        """Return the report on these outcomes."""
        by_weighting = {weighting: compute_scores(results) for weighting, results in outcomes.items()}
        return cls(strategy, by_weighting, temperature, best_temperature, best_ece, single, probability, twins)

    @property
    def scores(self) -> Scores:
        """The scores with the first weighting."""
        return next(iter(self.by_weighting.values()))

    def as_json(self) -> dict[str, Any]:
        """Return at_1, at_3, at_5, mrr and everything else that was measured."""
        return as_json(self.scores) | {
            "strategy": self.strategy.value,
            "weighting": next(iter(self.by_weighting)).value,
            "weightings": {weighting.value: {"ece": scores.ece} for weighting, scores in self.by_weighting.items()},
            "temperature": self.temperature,
            "best_temperature": self.best_temperature,
            "ece_at_best_temperature": self.best_ece,
            "adapters_with_one_vector": list(self.single),
            "queries_of_two_adapters": self.twins,
            "ece_of_probabilities": None if self.probability is None else self.probability.ece,
            "examples": {str(count): _curve_point(scores) for count, scores in self.curve.items()},
            "open_set_auroc": self.open_set_auroc,
            "at_1_difference": None if self.difference is None else asdict(self.difference),
        }


def print_reports(reports: Sequence[StrategyReport], *, as_json: bool) -> None:
    """Print tables, or JSON: one strategy's object, or objects by strategy if there are several."""
    if as_json:
        by_name = {report.strategy.value: report.as_json() for report in reports}
        content = by_name if len(by_name) > 1 else next(iter(by_name.values()))
        sys.stdout.write(json.dumps(content, ensure_ascii=False, indent=2) + "\n")
        return
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    console.print(_ranks(reports))
    console.print(_calibration(reports))
    for report in reports:
        _print_confusion(console, report, with_matrix=len(reports) == 1)
    _print_curves(console, reports)
    if reports[0].twins:
        console.print(f"prompts of two adapters, left out of both: {reports[0].twins}")
    single = reports[0].single
    if single:
        console.print(f"known by one vector only, so never asked: {', '.join(single)}", soft_wrap=True)


def _ranks(reports: Sequence[StrategyReport]) -> Table:
    """Return how often the right adapter is found."""
    table = Table("strategy", "prompts", "@1", "95 % interval", "@3", "@5", "MRR")
    if len(reports) > 1:
        table.add_column(f"@1 less that of {reports[0].strategy.value}", justify="right")
    for report in reports:
        scores, interval = report.scores, report.scores.at_1_interval
        row = [report.strategy.value, str(scores.queries), f"{scores.at_1:.1%}"]
        row += [f"{interval.low:.1%} to {interval.high:.1%}", f"{scores.at_3:.1%}", f"{scores.at_5:.1%}"]
        row.append(f"{scores.mrr:.3f}")
        if len(reports) > 1:
            row.append("" if report.difference is None else _signed(report.difference))
        table.add_row(*row)
    return table


def _calibration(reports: Sequence[StrategyReport]) -> Table:
    """Return how far the weights are probabilities, and whether unknown requests are recognised."""
    table = Table("strategy", "NLL", "ECE probability")
    for weighting in reports[0].by_weighting:
        table.add_column(f"ECE {weighting.value}", justify="right")
    table.add_column("best temperature", justify="right")
    table.add_column("ECE softmax at it", justify="right")
    shows_unknown = any(report.open_set_auroc is not None for report in reports)
    if shows_unknown:
        table.add_column("AUROC unknown", justify="right")
    for report in reports:
        best = f"{report.best_temperature:.3g}" if report.best_temperature is not None else "not measured"
        best_ece = f"{report.best_ece:.3f}" if report.best_ece is not None else "not measured"
        errors = [f"{weighted.ece:.3f}" for weighted in report.by_weighting.values()]
        probability = None if report.probability is None else report.probability.ece
        row = [report.strategy.value, _number(report.scores.nll), _number(probability), *errors, best, best_ece]
        if shows_unknown:
            row.append(_number(report.open_set_auroc))
        table.add_row(*row)
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _signed(difference: Difference) -> str:
    interval = difference.interval
    return f"{100 * difference.mean:+.1f} ({100 * interval.low:+.1f} to {100 * interval.high:+.1f})"


def _curve_point(scores: Scores) -> dict[str, Any]:
    interval = scores.at_1_interval
    return {
        "at_1": scores.at_1,
        "at_1_interval": [interval.low, interval.high],
        "nll": scores.nll,
        "ece_of_probabilities": scores.ece,
        "queries": scores.queries,
    }


def _print_curves(console: Console, reports: Sequence[StrategyReport]) -> None:
    counts = list(reports[0].curve)
    if not counts:
        return
    table = Table("strategy", *(f"{count} examples" for count in counts), title="@1 (NLL) by examples per adapter")
    for report in reports:
        points = [f"{scores.at_1:.1%} ({_number(scores.nll)})" for scores in report.curve.values()]
        table.add_row(report.strategy.value, *points)
    console.print(table)


def _print_confusion(console: Console, report: StrategyReport, *, with_matrix: bool) -> None:
    confused = report.scores.confused[:_MAX_CONFUSED_PAIRS]
    pairs = ", ".join(f"{true} -> {other or 'none'} {count}" for true, other, count in confused)
    console.print(f"{report.strategy.value}: most confused: {pairs or 'none'}", soft_wrap=True)
    labels = labels_of(report.scores.confusion)
    if not with_matrix:
        return
    if len(labels) > _MAX_TABLE_LABELS:
        console.print("the confusion matrix is too wide for a table; draw it with --confusion FILE.svg")
        return
    table = Table("", *(str(index + 1) for index in range(len(labels))))
    console.print("confusion matrix: a row an adapter, a column the one retrieved first")
    for index, true in enumerate(labels):
        counts = [report.scores.confusion.get((true, other), 0) for other in labels]
        table.add_row(f"{index + 1} {true or '(none)'}", *(str(count) if count else "" for count in counts))
    console.print(table)
    _print_reliability(console, report)


def _print_reliability(console: Console, report: StrategyReport) -> None:
    table = Table("weight of the best", "prompts", "right", title="reliability of the weights")
    for weight_bin in report.scores.bins:
        if weight_bin.count:
            table.add_row(f"{weight_bin.mean_weight:.2f}", str(weight_bin.count), f"{weight_bin.right:.1%}")
    console.print(table)
