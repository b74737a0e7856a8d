"""The headline metric: the right action, on the right thing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from infra.contract.errors import InvalidArgumentError
from orchestrator.evaluation.actions import POINT_TOLERANCE_PX, Action, parse_action


@dataclass(frozen=True)
class ActionMetric:
    """A step is right when the answer is that one action and nothing else: same type, same argument.

    Points may differ by `point_tolerance_px`; see `Action.same_argument`. Where the truth itself is not in the action
    language, the answer must be the same text.
    """

    point_tolerance_px: float = POINT_TOLERANCE_PX
    name: ClassVar[str] = "action"

    def __post_init__(self) -> None:
        if not self.point_tolerance_px >= 0:
            raise InvalidArgumentError("point_tolerance_px", f"must not be negative, got {self.point_tolerance_px}")

    def accepts(self, truth: str, answer: str) -> bool:
        """Whether `answer` counts as `truth`."""
        return _parsed(answer).same_as(_parsed(truth), self.point_tolerance_px)


@lru_cache(maxsize=1 << 14)
def _parsed(text: str) -> Action:
    return parse_action(text)
