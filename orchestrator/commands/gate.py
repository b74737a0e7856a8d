"""Exit codes for continuous integration: a score that is too low, or that there is none of, fails the command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

import typer

from infra.contract.errors import InvalidArgumentError
from orchestrator.commands import console
from orchestrator.evaluation.metrics.uncertainty import UNSCORED, Estimate
from orchestrator.evaluation.summary import ALL, Cell, Summary


class JobMetric(StrEnum):
    """The metrics that a job's summary holds."""

    ACTION = "action"
    ACTION_TYPE = "action_type"
    LEGACY = "legacy"
    EXACT_MATCH = "exact_match"
    ROUGE_L = "rouge_l"
    BLEU = "bleu"


@dataclass(frozen=True)
class Gate:
    """What a job's scores have to reach: all strategies, or those labelled `only`, at least `fail_under` in 0..1."""

    metric: JobMetric = JobMetric.ACTION
    fail_under: float | None = None
    only: Sequence[str] = ()

    def __post_init__(self) -> None:
        _check_share(self.fail_under)

    def check_labels(self, labels: Sequence[str]) -> None:
        """Raise InvalidArgumentError for a strategy that is none of the job's."""
        unknown = [label for label in self.only if label not in labels]
        if unknown and self.fail_under is not None:
            raise InvalidArgumentError(
                "fail_on", f"{', '.join(unknown)} is none of the job's strategies: {', '.join(labels)}"
            )

    def check(self, summary: Summary) -> None:
        """Exit with status 1 when a score is too low or there is none. Raises InvalidArgumentError."""
        self.check_labels(summary.strategies)
        gate(shares_of(summary, self.metric, self.only), self.fail_under)


def gate(shares: Mapping[str, float | None], fail_under: float | None) -> None:
    """Exit with status 1, naming what is too low, when a share is below `fail_under` or unscored; None: never."""
    if fail_under is None:
        return
    _check_share(fail_under)
    low = {name: share for name, share in shares.items() if share is None or share < fail_under}
    if low or not shares:
        said = ", ".join(f"{name} {'unscored' if share is None else f'{share:.4f}'}" for name, share in low.items())
        console.note(f"below {fail_under:g}: {said or 'nothing was scored'}")
        raise typer.Exit(console.FAILED)


def shares_of(summary: Summary, metric: JobMetric, only: Sequence[str] = ()) -> dict[str, float | None]:
    """Return the score of each strategy over all datasets, or of those labelled `only`."""
    cells = {strategy: summary.group(strategy, ALL) for strategy in only or summary.strategies}
    return {strategy: None if cell is None else _score(cell, metric).value for strategy, cell in cells.items()}


def _check_share(share: float | None) -> None:
    if share is not None and not 0 <= share <= 1:
        raise InvalidArgumentError("fail_under", f"a share in 0..1, got {share:g}; 80 % is 0.8")


def _score(cell: Cell, metric: JobMetric) -> Estimate:
    match metric:
        case JobMetric.ACTION:
            return cell.action.steps
        case JobMetric.ACTION_TYPE:
            return cell.action_parts.action_type if cell.action_parts is not None else UNSCORED
        case JobMetric.LEGACY:
            return cell.legacy.steps
        case JobMetric.EXACT_MATCH:
            return cell.texts.exact_match
        case JobMetric.ROUGE_L:
            return cell.texts.rouge_l
        case JobMetric.BLEU:
            return cell.texts.bleu
        case _:
            assert_never(metric)
