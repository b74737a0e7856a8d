"""What an evaluation found, as tables for people and as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from rich.console import Console
from rich.table import Table

from infra.contract.retrieval import RetrievalStrategy, Weighting
from retrieval_service.evaluation.outcomes import Figures, Outcome, as_json, figures, labels_of

_PAIRS = 5
_WIDEST_MATRIX = 24
_PLAIN_WIDTH = 160


@dataclass(frozen=True)
class Measured:
    """The figures of one strategy, a set of them for each weighting; ranks are the same in all.

    `best_temperature` is the one under which softmax weights tell best which adapter is right, where that is known;
    `single` are adapters of which one vector is known, so that none of theirs could be left out.
    """

    strategy: RetrievalStrategy
    by_weighting: Mapping[Weighting, Figures]
    temperature: float
    best_temperature: float | None
    best_ece: float | None
    single: tuple[str, ...]

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
    ) -> Self:
        """Return the figures of outcomes."""
        found = {name: figures(one) for name, one in outcomes.items()}
        return cls(strategy, found, temperature, best_temperature, best_ece, single)

    @property
    def figures(self) -> Figures:
        """The figures with the first weighting."""
        return next(iter(self.by_weighting.values()))

    def as_json(self) -> dict[str, Any]:
        """Return at_1, at_3, at_5 and mrr, and what else is known."""
        return as_json(self.figures) | {
            "strategy": self.strategy.value,
            "weighting": next(iter(self.by_weighting)).value,
            "weightings": {name.value: {"ece": one.ece} for name, one in self.by_weighting.items()},
            "temperature": self.temperature,
            "best_temperature": self.best_temperature,
            "ece_at_best_temperature": self.best_ece,
            "adapters_with_one_vector": list(self.single),
        }


def show(measured: Sequence[Measured], *, as_json: bool) -> None:
    """Print it: JSON of one strategy, or by strategy where there are several; or tables."""
    if as_json:
        by_name = {one.strategy.value: one.as_json() for one in measured}
        content = by_name if len(by_name) > 1 else next(iter(by_name.values()))
        sys.stdout.write(json.dumps(content, ensure_ascii=False, indent=2) + "\n")
        return
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
    console.print(_summary(measured))
    for one in measured:
        _print_confusion(console, one, whole=len(measured) == 1)
    single = measured[0].single
    if single:
        console.print(f"known by one vector only, so never asked: {', '.join(single)}", soft_wrap=True)


def _summary(measured: Sequence[Measured]) -> Table:
    table = Table("strategy", "prompts", "@1", "@3", "@5", "MRR")
    for name in measured[0].by_weighting:
        table.add_column(f"ECE {name.value}", justify="right")
    table.add_column("best temperature", justify="right")
    table.add_column("ECE softmax at it", justify="right")
    for one in measured:
        best = f"{one.best_temperature:.3g}" if one.best_temperature is not None else "not measured"
        at_it = f"{one.best_ece:.3f}" if one.best_ece is not None else "not measured"
        shares = [f"{share:.1%}" for share in (one.figures.at_1, one.figures.at_3, one.figures.at_5)]
        errors = [f"{each.ece:.3f}" for each in one.by_weighting.values()]
        table.add_row(
            one.strategy.value, str(one.figures.queries), *shares, f"{one.figures.mrr:.3f}", *errors, best, at_it
        )
    return table


def _print_confusion(console: Console, one: Measured, *, whole: bool) -> None:
    confused = one.figures.confused
    pairs = ", ".join(f"{true} -> {other or 'none'} {count}" for true, other, count in confused[:_PAIRS])
    console.print(f"{one.strategy.value}: most confused: {pairs or 'none'}", soft_wrap=True)
    labels = labels_of(one.figures.confusion)
    if not whole:
        return
    if len(labels) > _WIDEST_MATRIX:
        console.print("the confusion matrix is too wide for a table; draw it with --confusion FILE.svg")
        return
    table = Table("", *(str(index + 1) for index in range(len(labels))))
    console.print("confusion matrix: a row an adapter, a column the one retrieved first")
    for index, true in enumerate(labels):
        counts = [one.figures.confusion.get((true, other), 0) for other in labels]
        table.add_row(f"{index + 1} {true or '(none)'}", *(str(count) if count else "" for count in counts))
    console.print(table)
    _print_reliability(console, one)


def _print_reliability(console: Console, one: Measured) -> None:
    table = Table("weight of the best", "prompts", "right", title="reliability of the weights")
    for found in one.figures.bins:
        if found.count:
            table.add_row(f"{found.mean_weight:.2f}", str(found.count), f"{found.right:.1%}")
    console.print(table)
