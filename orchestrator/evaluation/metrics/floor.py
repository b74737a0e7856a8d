"""The floor of a score: what the best constant answer reaches without seeing query or screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol, TypeVar

from orchestrator.evaluation.actions import Label, parse_action, render_action

_MAX_CANDIDATES = 30
"""Most frequent truths tried as the constant: bounds the work, since every candidate is compared with every truth."""

_Accepts = Callable[[str, str], bool]
_T = TypeVar("_T", bound=Hashable)


class Metric(Protocol):
    """Decides whether an answer counts as a true action. Hashable: equal metrics make equal decisions."""

    @property
    def name(self) -> str:
        """The metric's name in reports."""

    def applies_to(self, truth: str) -> bool:
        """Whether answers to `truth` can be scored at all."""

    def accepts(self, truth: str, answer: str) -> bool:
        """Whether `answer` counts as `truth`, to which the metric applies."""

    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class Floor:
    """Correct steps and episodes of the best constant template, and the numbers of all steps and episodes."""

    correct_steps: int
    steps: int
    correct_episodes: int
    episodes: int

    def __add__(self, other: Floor) -> Floor:
        return Floor(
            self.correct_steps + other.correct_steps,
            self.steps + other.steps,
            self.correct_episodes + other.correct_episodes,
            self.episodes + other.episodes,
        )

    @property
    def step_share(self) -> float | None:
        """The share of correct steps in [0, 1]; None: there are no steps."""
        return self.correct_steps / self.steps if self.steps else None

    @property
    def episode_share(self) -> float | None:
        """The share of correct episodes in [0, 1]; None: there are no episodes."""
        return self.correct_episodes / self.episodes if self.episodes else None


@lru_cache(maxsize=128)
def floor_of(episodes: tuple[tuple[str | None, ...], ...], metric: Metric) -> Floor:
    """Return what the best constant template reaches on these truths (None: unscored, left out).

    A template is a fixed list of actions, one per position, the same for every episode. For steps it takes at each
    position the candidate that counts as most of the truths there; for episodes, the list that counts as most episodes,
    number of steps included. Candidates are the _MAX_CANDIDATES most frequent truths, and the same truths with an
    empty quoted label.

    Cached, because several strategies and groups of datasets have the same truths.
    """
    accepts = metric.accepts
    longest = max((len(truths) for truths in episodes), default=0)
    correct_steps = steps = 0
    for position in range(longest):
        at_position = Counter(
            truth for truths in episodes if position < len(truths) and (truth := truths[position]) is not None
        )
        candidates = _with(at_position, _emptied)
        correct_steps += _best(at_position, candidates, accepts)
        steps += at_position.total()
    complete = Counter(
        tuple(truth for truth in truths if truth is not None) for truths in episodes if None not in truths
    )
    lists = _with(complete, lambda truths: tuple(map(_emptied, truths)))
    correct_episodes = _best(complete, lists, lambda truth, answer: _all_accepted(truth, answer, accepts))
    return Floor(correct_steps, steps, correct_episodes, complete.total())


def _best(truths: Counter[_T], candidates: Iterable[_T], accepts: Callable[[_T, _T], bool]) -> int:
    counts = (sum(count for truth, count in truths.items() if accepts(truth, candidate)) for candidate in candidates)
    return max(counts, default=0)


def _with(truths: Counter[_T], change: Callable[[_T], _T]) -> list[_T]:
    frequent = [truth for truth, _ in truths.most_common(_MAX_CANDIDATES)]
    return list(dict.fromkeys([*frequent, *map(change, frequent)]))


def _all_accepted(truths: tuple[str, ...], answers: tuple[str, ...], accepts: _Accepts) -> bool:
    return len(truths) == len(answers) and all(map(accepts, truths, answers))


def _emptied(text: str) -> str:
    action = parse_action(text)
    if isinstance(action.argument, Label):
        return render_action(replace(action, argument=replace(action.argument, value="")))
    return text
