"""What an answer that sees neither query nor screen would score: the line below which a score means nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol, TypeVar

from orchestrator.evaluation.actions import Label, parse_action, render_action

MAX_CANDIDATES = 30
"""Truths tried as the constant, the most frequent ones first: enough for the best one, and bounded work."""

Accepts = Callable[[str, str], bool]
T = TypeVar("T", bound=Hashable)


class Metric(Protocol):
    """Decides whether an answer counts as a true action. Hashable: equal metrics decide alike."""

    @property
    def name(self) -> str:
        """Its name in reports."""

    def applies_to(self, truth: str) -> bool:
        """Whether answers to `truth` can be scored at all."""

    def accepts(self, truth: str, answer: str) -> bool:
        """Whether `answer` counts as `truth`, one that it measures."""

    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class Floor:
    """Right steps and episodes of the best constant template, and how many there were."""

    right_steps: int
    steps: int
    right_episodes: int
    episodes: int

    def __add__(self, other: Floor) -> Floor:
        return Floor(
            self.right_steps + other.right_steps,
            self.steps + other.steps,
            self.right_episodes + other.right_episodes,
            self.episodes + other.episodes,
        )

    @property
    def step_share(self) -> float | None:
        """The share of right steps, in [0, 1]."""
        return self.right_steps / self.steps if self.steps else None

    @property
    def episode_share(self) -> float | None:
        """The share of right episodes, in [0, 1]."""
        return self.right_episodes / self.episodes if self.episodes else None


@lru_cache(maxsize=128)
def floor_of(episodes: tuple[tuple[str | None, ...], ...], metric: Metric) -> Floor:
    """Return what the best constant template reaches on these truths (None: unscored, left out).

    A template is a fixed list of actions, one for each position, the same for every episode. For steps, at each
    position the one candidate that counts as most of the truths there is taken; for episodes, the one list that counts
    as most episodes, in step and number. Candidates are the truths themselves, and the truths with their quoted label
    emptied; of many different ones the MAX_CANDIDATES most frequent.

    Remembered, because strategies and groups of datasets ask for the same again.
    """
    accepts = metric.accepts
    longest = max((len(truths) for truths in episodes), default=0)
    right_steps = steps = 0
    for position in range(longest):
        at_position = Counter(
            truth for truths in episodes if position < len(truths) and (truth := truths[position]) is not None
        )
        candidates = _with(at_position, _emptied)
        right_steps += _best(at_position, candidates, accepts)
        steps += at_position.total()
    complete = Counter(
        tuple(truth for truth in truths if truth is not None) for truths in episodes if None not in truths
    )
    lists = _with(complete, lambda truths: tuple(map(_emptied, truths)))
    right_episodes = _best(complete, lists, lambda truth, answer: _all_accepted(truth, answer, accepts))
    return Floor(right_steps, steps, right_episodes, complete.total())


def _best(truths: Counter[T], candidates: Iterable[T], accepts: Callable[[T, T], bool]) -> int:
    counts = (sum(count for truth, count in truths.items() if accepts(truth, candidate)) for candidate in candidates)
    return max(counts, default=0)


def _with(truths: Counter[T], change: Callable[[T], T]) -> list[T]:
    frequent = [truth for truth, _ in truths.most_common(MAX_CANDIDATES)]
    return list(dict.fromkeys([*frequent, *map(change, frequent)]))


def _all_accepted(truths: tuple[str, ...], answers: tuple[str, ...], accepts: Accepts) -> bool:
    return len(truths) == len(answers) and all(map(accepts, truths, answers))


def _emptied(text: str) -> str:
    action = parse_action(text)
    if isinstance(action.argument, Label):
        return render_action(replace(action, argument=replace(action.argument, value="")))
    return text
