"""Choose the reference of each strategy of a job and compute the paired differences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.evaluation.metrics.action import ActionMetric
from orchestrator.evaluation.metrics.episodes import score_steps
from orchestrator.evaluation.metrics.paired import Question, QuestionScore, paired_difference
from orchestrator.evaluation.metrics.text import exact_match, score_answers
from orchestrator.evaluation.metrics.uncertainty import Estimate
from orchestrator.evaluation.records import Record
from orchestrator.evaluation.report.summary import Difference
from orchestrator.evaluation.scoring import answered_episodes, judge_scores, whole_answers
from orchestrator.evaluation.spec import EvaluatedStrategy


def reference_pairs(strategies: Sequence[EvaluatedStrategy]) -> Iterator[tuple[str, str]]:
    """Yield each strategy's label with the label of its reference: selection, else base, else the first strategy.

    Strategies that hide the dataset's own adapter (out of domain) are compared with each other, and so are the others
    (in domain, including the oracle). Base uses no adapters and belongs to both domains.
    """
    for out_of_domain in (False, True):
        if not any(strategy.exclude_own_adapter == out_of_domain for strategy in strategies):
            continue
        domain = [
            strategy
            for strategy in strategies
            if strategy.exclude_own_adapter == out_of_domain or strategy.strategy is AnswerStrategy.BASE
        ]
        reference = _first(domain, AnswerStrategy.SELECTION) or _first(domain, AnswerStrategy.BASE) or domain[0]
        yield from ((strategy.label, reference.label) for strategy in domain if strategy is not reference)


def strategy_difference(
    strategy: str,
    reference: str,
    data: str,
    first: Sequence[Record],
    second: Sequence[Record],
    *,
    point_tolerance_px: float,
    grades: Mapping[str, float],
) -> Difference:
    """Return the paired difference of the `first` records to the `second`.

    `grades` are a judge's, by sample key.
    """
    metric = ActionMetric(point_tolerance_px)

    def difference(score: Callable[[Sequence[Record]], Mapping[Question, QuestionScore]]) -> Estimate:
        return paired_difference(score(first), score(second))

    return Difference(
        strategy,
        reference,
        data,
        steps=difference(lambda records: score_steps(answered_episodes(records), metric)),
        texts=difference(lambda records: score_answers(whole_answers(records), exact_match)),
        judge=difference(lambda records: judge_scores(records, grades)),
    )


def _first(strategies: Sequence[EvaluatedStrategy], kind: AnswerStrategy) -> EvaluatedStrategy | None:
    return next((strategy for strategy in strategies if strategy.strategy is kind), None)
