"""Two sets of results beside each other: who is better on the same questions, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from infra.contract.errors import InvalidArgumentError
from orchestrator.evaluation.actions import POINT_TOLERANCE_PX
from orchestrator.evaluation.metrics.legacy import LEGACY_THRESHOLD
from orchestrator.evaluation.metrics.paired import Graded, paired_difference
from orchestrator.evaluation.metrics.text import mean_score
from orchestrator.evaluation.metrics.uncertainty import Estimate
from orchestrator.evaluation.result_files import MetricName, Results, graded


@dataclass(frozen=True)
class Compared:
    """Two strategies on the questions that both have a score for. `difference` is second - first, paired."""

    first: str
    second: str
    metric: str
    first_score: Estimate
    second_score: Estimate
    difference: Estimate


def compare(
    first: Results,
    second: Results,
    metric: MetricName = MetricName.ACTION,
    threshold: float = LEGACY_THRESHOLD,
    *,
    point_tolerance_px: float = POINT_TOLERANCE_PX,
    strategy: str | None = None,
    against: str | None = None,
) -> list[Compared]:
    """Compare `strategy` of the first with `against` of the second (default: the same).

    Without a name, sets of one strategy each are compared whatever it is called, and others strategy by strategy where
    both have it. Raises InvalidArgumentError when nothing can be compared.
    """
    compared = []
    for left, right in _pairs(first, second, strategy, against):
        ours = graded(first.of_strategy(left), metric, threshold, point_tolerance_px)
        theirs = graded(second.of_strategy(right), metric, threshold, point_tolerance_px)
        both = ours.keys() & theirs.keys()
        if not both:
            raise InvalidArgumentError(
                "",
                f"{first.source} and {second.source} have no scored question in common: compare results of one dataset "
                "under one protocol",
            )
        compared.append(
            Compared(
                first=left or first.source,
                second=right or second.source,
                metric=metric.value,
                first_score=mean_score(_only(ours, both)),
                second_score=mean_score(_only(theirs, both)),
                difference=paired_difference(theirs, ours),
            )
        )
    return compared


def _pairs(
    first: Results, second: Results, strategy: str | None, against: str | None
) -> list[tuple[str | None, str | None]]:
    if strategy is not None or against is not None:
        return [(strategy or against, against or strategy)]
    if len(first.strategies) <= 1 and len(second.strategies) <= 1:
        return [(next(iter(first.strategies), None), next(iter(second.strategies), None))]
    common: list[tuple[str | None, str | None]] = [
        (each, each) for each in first.strategies if each in second.strategies
    ]
    if not common:
        raise InvalidArgumentError(
            "strategy",
            f"{first.source} holds {', '.join(first.strategies) or 'no named strategy'}, {second.source} "
            f"{', '.join(second.strategies) or 'no named strategy'}; name one of each with --strategy and --against",
        )
    return common


def _only(scores: Mapping[object, Graded], keys: set[object]) -> dict[object, Graded]:
    return {key: scores[key] for key in scores if key in keys}
