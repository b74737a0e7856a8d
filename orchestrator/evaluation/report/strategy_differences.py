"""Which strategies of a job are compared with which, and by how much they differ."""

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
    """Yield each strategy's label with that of the strategy it is compared with: selection, else base, else the first.

    Strategies that hide the dataset's own adapter are compared among themselves, and so are the others, the oracle one
    of them. Base hides nothing and is in both columns.
    """
    for hides in (False, True):
        if not any(each.exclude_own_adapter == hides for each in strategies):
            continue
        column = [
            each for each in strategies if each.exclude_own_adapter == hides or each.strategy is AnswerStrategy.BASE
        ]
        reference = _first(column, AnswerStrategy.SELECTION) or _first(column, AnswerStrategy.BASE) or column[0]
        yield from ((each.label, reference.label) for each in column if each is not reference)


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
    """Return how much better the `first` records are than the `second`, question by question.

    `grades` are a judge's, by sample key.
    """
    metric = ActionMetric(point_tolerance_px)

    def of(graded: Callable[[Sequence[Record]], Mapping[Question, QuestionScore]]) -> Estimate:
        return paired_difference(graded(first), graded(second))

    return Difference(
        strategy,
        reference,
        data,
        steps=of(lambda records: score_steps(answered_episodes(records), metric)),
        texts=of(lambda records: score_answers(whole_answers(records), exact_match)),
        judge=of(lambda records: judge_scores(records, grades)),
    )


def _first(strategies: Sequence[EvaluatedStrategy], kind: AnswerStrategy) -> EvaluatedStrategy | None:
    return next((each for each in strategies if each.strategy is kind), None)
