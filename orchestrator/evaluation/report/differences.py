"""Which strategies of a job are compared with which, and by how much they differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestrator.evaluation.metrics.action import ActionMetric
from orchestrator.evaluation.metrics.episodes import graded_steps
from orchestrator.evaluation.metrics.paired import paired_difference
from orchestrator.evaluation.records import Record
from orchestrator.evaluation.report.summary import Difference
from orchestrator.evaluation.scoring import answered_episodes
from orchestrator.evaluation.spec import AnswerStrategy, EvaluatedStrategy


def references(strategies: Sequence[EvaluatedStrategy]) -> Iterator[tuple[str, str]]:
    """Yield each strategy's label with that of the selection it is compared with, where the job has one.

    Strategies that hide the dataset's own adapter are compared with the selection that does; base hides nothing and is
    compared with both, the oracle with the one in domain.
    """
    for hides in (False, True):
        selection = next((each for each in strategies if _is_selection(each, hides)), None)
        if selection is None:
            continue
        for strategy in strategies:
            in_column = strategy.exclude_own_adapter == hides or strategy.strategy is AnswerStrategy.BASE
            if in_column and strategy is not selection:
                yield strategy.label, selection.label


def difference_of(
    strategy: str,
    reference: str,
    data: str,
    first: Sequence[Record],
    second: Sequence[Record],
    *,
    point_tolerance_px: float,
) -> Difference:
    """Return how much more often the `first` records are right than the `second`, question by question."""
    metric = ActionMetric(point_tolerance_px)
    graded = (graded_steps(answered_episodes(records), metric) for records in (first, second))
    return Difference(strategy, reference, data, paired_difference(*graded))


def _is_selection(strategy: EvaluatedStrategy, hides: bool) -> bool:
    return strategy.strategy is AnswerStrategy.SELECTION and strategy.exclude_own_adapter == hides
