"""Compare two sets of results on the questions that both answered, by paired differences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from infra.contract.errors import InvalidArgumentError
from orchestrator.evaluation.actions import POINT_TOLERANCE_PX
from orchestrator.evaluation.metrics.legacy import LEGACY_THRESHOLD
from orchestrator.evaluation.metrics.paired import Question, QuestionScore, paired_difference
from orchestrator.evaluation.metrics.text import mean_score
from orchestrator.evaluation.metrics.uncertainty import Estimate
from orchestrator.evaluation.result_files import Results
from orchestrator.evaluation.result_scores import MetricName, headline_metric, score_questions


@dataclass(frozen=True)
class Comparison:
    """Two strategies on the questions that both have a score for.

    Attributes:
        first: label or source of the first.
        second: label or source of the second.
        metric: name of the metric.
        first_score: mean of the first over the shared questions.
        second_score: mean of the second over the shared questions.
        difference: paired mean of second - first.
        left_out: locations at which both have a score but the questions differ, since their data differ.
        only_first: other questions that only the first has a score for.
        only_second: other questions that only the second has a score for.
        protocols: protocols of the answers; under several, the same question had different prompts.
    """

    first: str
    second: str
    metric: str
    first_score: Estimate
    second_score: Estimate
    difference: Estimate
    left_out: int = 0
    only_first: int = 0
    only_second: int = 0
    protocols: tuple[str, ...] = ()

    @property
    def notes(self) -> list[str]:
        """Caveats of the difference, as sentences."""
        notes = []
        if self.left_out:
            notes.append("Left out: questions with the same name in both whose content differs.")
        if self.left_out or self.only_first or self.only_second:
            notes.append("Scores cover only the questions that both have a score for.")
        if len(self.protocols) > 1:
            notes.append(f"Answered under different protocols, so with different prompts: {', '.join(self.protocols)}.")
        return notes


def compare(
    first: Results,
    second: Results,
    metric: MetricName | None = None,
    threshold: float = LEGACY_THRESHOLD,
    *,
    point_tolerance_px: float = POINT_TOLERANCE_PX,
    strategy: str | None = None,
    against: str | None = None,
) -> list[Comparison]:
    """Compare `strategy` of the first results with `against` of the second (default: the same label).

    Without either name, results of one strategy each are compared regardless of label; otherwise every strategy that
    both have. `metric` defaults to `headline_metric`. Raises InvalidArgumentError if nothing can be compared.
    """
    metric = metric or headline_metric(first, second)
    compared = []
    for left, right in _pairs(first, second, strategy, against):
        sides = first.of_strategy(left), second.of_strategy(right)
        scores = [score_questions(results, metric, threshold, point_tolerance_px) for results in sides]
        if scores[0].keys().isdisjoint(scores[1]):
            raise InvalidArgumentError(
                "",
                f"{first.source} and {second.source} have no scored question in common; compare results on the same "
                "dataset under the same protocol",
            )
        comparison = _compare_scores(left or first.source, right or second.source, metric, *scores)
        protocols = dict.fromkeys(name for results in sides for name in results.protocols)
        compared.append(replace(comparison, protocols=tuple(protocols)))
    return compared


def _pairs(
    first: Results, second: Results, strategy: str | None, against: str | None
) -> list[tuple[str | None, str | None]]:
    if strategy is not None or against is not None:
        return [(strategy or against, against or strategy)]
    if len(first.strategies) <= 1 and len(second.strategies) <= 1:
        return [(next(iter(first.strategies), None), next(iter(second.strategies), None))]
    common: list[tuple[str | None, str | None]] = [
        (label, label) for label in first.strategies if label in second.strategies
    ]
    if not common:
        raise InvalidArgumentError(
            "strategy",
            f"{first.source} has {', '.join(first.strategies) or 'no named strategy'}, {second.source} has "
            f"{', '.join(second.strategies) or 'no named strategy'}; choose one of each with --strategy and --against",
        )
    return common


def _compare_scores(
    first_name: str,
    second_name: str,
    metric: MetricName,
    first: Mapping[Question, QuestionScore],
    second: Mapping[Question, QuestionScore],
) -> Comparison:
    shared = first.keys() & second.keys()
    only_first, only_second = _locations(first.keys() - shared), _locations(second.keys() - shared)
    left_out = only_first & only_second
    return Comparison(
        first=first_name,
        second=second_name,
        metric=metric.value,
        first_score=mean_score(_only(first, shared)),
        second_score=mean_score(_only(second, shared)),
        difference=paired_difference(second, first),
        left_out=len(left_out),
        only_first=len(only_first - left_out),
        only_second=len(only_second - left_out),
    )


def _only(scores: Mapping[Question, QuestionScore], keys: set[Question]) -> dict[Question, QuestionScore]:
    return {key: scores[key] for key in scores if key in keys}


def _locations(questions: Iterable[Question]) -> set[tuple[str, str, int]]:
    return {question.location for question in questions}
