"""Two sets of results beside each other: who is better on the same questions, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from infra.contract.errors import InvalidArgumentError
from orchestrator.evaluation.actions import POINT_TOLERANCE_PX
from orchestrator.evaluation.metrics.legacy import LEGACY_THRESHOLD
from orchestrator.evaluation.metrics.paired import Question, QuestionScore, paired_difference
from orchestrator.evaluation.metrics.text import mean_score
from orchestrator.evaluation.metrics.uncertainty import Estimate
from orchestrator.evaluation.result_files import MetricName, Results, score_questions


@dataclass(frozen=True)
class Comparison:
    """Two strategies on the questions that both have a score for. `difference` is second - first, paired.

    `left_out` counts the places of the datasets at which both have a score, but of other questions: their data differ.
    `only_first` and `only_second` count the other questions that one of them alone has a score for.
    `protocols` are those that the answers were given under; under several a question was not asked in the same words.
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
        """What a reader must know before believing the difference, as sentences."""
        said = []
        if self.left_out:
            said.append("Left out: questions that both have a score for under one name, but that differ themselves.")
        if self.left_out or self.only_first or self.only_second:
            said.append("The scores shown are of the pairs alone: the questions that both have a score for.")
        if len(self.protocols) > 1:
            said.append(f"Answered under different protocols, by different prompts: {', '.join(self.protocols)}.")
        return said


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
    """Compare `strategy` of the first with `against` of the second (default: the same).

    Without a name, sets of one strategy each are compared whatever it is called, and others strategy by strategy where
    both have it. `metric` None: `headline_metric`. Raises InvalidArgumentError when nothing can be compared.
    """
    compared = []
    metric = metric or headline_metric(first, second)
    for left, right in _pairs(first, second, strategy, against):
        chosen = first.of_strategy(left), second.of_strategy(right)
        ours, theirs = (score_questions(results, metric, threshold, point_tolerance_px) for results in chosen)
        both = ours.keys() & theirs.keys()
        alone = ours.keys() - both, theirs.keys() - both
        left_out = _places(alone[0]) & _places(alone[1])
        if not both:
            raise InvalidArgumentError(
                "",
                f"{first.source} and {second.source} have no scored question in common: compare results of one dataset "
                "under one protocol",
            )
        compared.append(
            Comparison(
                first=left or first.source,
                second=right or second.source,
                metric=metric.value,
                first_score=mean_score(_only(ours, both)),
                second_score=mean_score(_only(theirs, both)),
                difference=paired_difference(theirs, ours),
                left_out=len(left_out),
                only_first=len(_places(alone[0]) - left_out),
                only_second=len(_places(alone[1]) - left_out),
                protocols=tuple(dict.fromkeys(name for results in chosen for name in results.protocols)),
            )
        )
    return compared


def headline_metric(first: Results, second: Results) -> MetricName:
    """Return what two sets of results are compared by where nothing is said: actions, if any true answer is one."""
    found = {first.headline_metric, second.headline_metric}
    return MetricName.ACTION if MetricName.ACTION in found else MetricName.EXACT_MATCH


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


def _only(scores: Mapping[Question, QuestionScore], keys: set[Question]) -> dict[Question, QuestionScore]:
    return {key: scores[key] for key in scores if key in keys}


def _places(questions: Iterable[Question]) -> set[tuple[str, str, int]]:
    return {question.place for question in questions}
