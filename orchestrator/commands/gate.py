"""Exit codes for continuous integration: a score that is too low, or that there is none of, fails the command."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import typer

from infra.contract.errors import InvalidArgumentError
from orchestrator.commands import console
from orchestrator.evaluation.summary import ALL, Cell, Summary


class JobMetric(StrEnum):
    """The metrics that a job's summary holds."""

    ACTION = "action"
    ACTION_TYPE = "action_type"
    LEGACY = "legacy"


def gate(shares: Mapping[str, float | None], fail_under: float | None) -> None:
    """Exit with status 1, naming what is too low, when a share is below `fail_under` or unscored; None: never."""
    if fail_under is None:
        return
    if not 0 <= fail_under <= 1:
        raise InvalidArgumentError("fail_under", f"a share in 0..1, got {fail_under:g}; 80 % is 0.8")
    low = {name: share for name, share in shares.items() if share is None or share < fail_under}
    if low or not shares:
        said = ", ".join(f"{name} {'unscored' if share is None else f'{share:.4f}'}" for name, share in low.items())
        console.note(f"below {fail_under:g}: {said or 'nothing was scored'}")
        raise typer.Exit(console.FAILED)


def shares_of(summary: Summary, metric: JobMetric) -> dict[str, float | None]:
    """Return the step accuracy of each strategy over all datasets."""
    cells = {strategy: summary.group(strategy, ALL) for strategy in summary.strategies}
    return {strategy: None if cell is None else _share(cell, metric) for strategy, cell in cells.items()}


def _share(cell: Cell, metric: JobMetric) -> float | None:
    match metric:
        case JobMetric.LEGACY:
            return cell.legacy.steps.value
        case JobMetric.ACTION_TYPE:
            return cell.action_parts.action_type.value if cell.action_parts is not None else None
        case JobMetric.ACTION:
            return cell.action.steps.value
