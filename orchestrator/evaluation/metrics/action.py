"""The headline metric: an action is correct if its type and its argument are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from infra.contract.errors import InvalidArgumentError
from orchestrator.evaluation.actions import POINT_TOLERANCE_PX, Action, ActionType, parse_action
from orchestrator.evaluation.metrics.episodes import AnsweredEpisode, answer_at
from orchestrator.evaluation.metrics.uncertainty import Estimate, clustered_mean


@dataclass(frozen=True)
class ActionMetric:
    """A step is correct if the answer is exactly the true action: same type, same argument, nothing else.

    Points may differ by `point_tolerance_px`; see `Action.same_argument`. If the truth is not in the action language,
    the answer must be the same text.
    """

    point_tolerance_px: float = POINT_TOLERANCE_PX
    name: ClassVar[str] = "action"

    def __post_init__(self) -> None:
        if not self.point_tolerance_px >= 0:
            raise InvalidArgumentError("point_tolerance_px", f"must not be negative, got {self.point_tolerance_px}")

    def applies_to(self, truth: str) -> bool:
        """Whether answers to `truth` can be scored; always true."""
        return True

    def accepts(self, truth: str, answer: str) -> bool:
        """Whether `answer` counts as `truth`."""
        return _parsed(answer).same_as(_parsed(truth), self.point_tolerance_px)


@dataclass(frozen=True)
class ActionTypeMetric:
    """A step is correct if the answer is one action of the true type, regardless of its argument.

    Steps whose truth is not in the action language have no type and are unscored.
    """

    name: ClassVar[str] = "action_type"

    def applies_to(self, truth: str) -> bool:
        """Whether `truth` is an action."""
        return _parsed(truth).type is not ActionType.UNKNOWN

    def accepts(self, truth: str, answer: str) -> bool:
        """Whether `answer` has the action type of `truth`."""
        return self.applies_to(truth) and _parsed(answer).same_type(_parsed(truth))


@dataclass(frozen=True)
class ActionParts:
    """Shares of steps whose answer has the correct type, and the correct argument.

    `argument` covers the steps whose true action takes one, regardless of the answer's type.
    """

    action_type: Estimate
    argument: Estimate


def score_action_parts(
    episodes: Sequence[AnsweredEpisode], point_tolerance_px: float = POINT_TOLERANCE_PX
) -> ActionParts:
    """Score types and arguments separately, with standard errors clustered by episode."""

    def estimate(steps: list[tuple[str, bool]]) -> Estimate:
        return clustered_mean([float(correct) for _, correct in steps], [cluster for cluster, _ in steps])

    steps = [
        (episode.cluster, _parsed(truth), _parsed(answer_at(episode, position)))
        for episode in episodes
        for position, truth in enumerate(episode.truths)
        if episode.is_scored(position)
    ]
    known = [step for step in steps if step[1].type is not ActionType.UNKNOWN]
    return ActionParts(
        estimate([(cluster, answer.same_type(truth)) for cluster, truth, answer in known]),
        estimate(
            [
                (cluster, answer.same_argument(truth, point_tolerance_px))
                for cluster, truth, answer in known
                if truth.argument is not None
            ]
        ),
    )


@lru_cache(maxsize=1 << 14)
def _parsed(text: str) -> Action:
    return parse_action(text)
