"""What retrieval gave for prompts whose adapter is known, and the figures made from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

_BINS = 10


@dataclass(frozen=True)
class Outcome:
    """One prompt: the adapter it belongs to, that adapter's rank from 1 on, and what was retrieved with which weights.

    `rank` is None where the adapter is not among those retrieved.
    """

    truth: str
    rank: int | None
    retrieved: tuple[str, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Bin:
    """Prompts whose best adapter has a weight in one tenth of [0, 1]."""

    count: int
    mean_weight: float
    right: float


@dataclass(frozen=True)
class Scores:
    """Shares of prompts in [0, 1]; `confusion` counts (adapter, adapter retrieved first)."""

    queries: int
    at_1: float
    at_3: float
    at_5: float
    mrr: float
    ece: float
    bins: tuple[Bin, ...]
    confusion: dict[tuple[str, str], int]

    @property
    def confused(self) -> list[tuple[str, str, int]]:
        """Pairs (adapter, adapter retrieved instead, how often), the most frequent first."""
        wrong = [(true, found, count) for (true, found), count in self.confusion.items() if true != found]
        return sorted(wrong, key=lambda one: (-one[2], one[0], one[1]))


def compute_scores(outcomes: Sequence[Outcome]) -> Scores:
    """Return the figures of outcomes, of which there must be one.

    mrr is the mean of 1/rank, 0 for an adapter that was not retrieved. ece is the expected calibration error of the
    first match's weight taken as the probability that it is right (Guo et al. 2017, eq. 3, ten bins).
    """
    count = len(outcomes)
    bins = _bins(outcomes)
    at_1, at_3, at_5 = (sum(one.rank is not None and one.rank <= k for one in outcomes) / count for k in (1, 3, 5))
    return Scores(
        count,
        at_1,
        at_3,
        at_5,
        mrr=sum(1 / one.rank for one in outcomes if one.rank is not None) / count,
        ece=sum(one.count * abs(one.mean_weight - one.right) for one in bins) / count,
        bins=bins,
        confusion=dict(Counter((one.truth, one.retrieved[0] if one.retrieved else "") for one in outcomes)),
    )


def as_json(found: Scores) -> dict[str, Any]:
    """Return the figures as JSON: at_1, at_3, at_5 and mrr in 0..1, and what else is known."""
    labels = labels_of(found.confusion)
    return {
        "at_1": found.at_1,
        "at_3": found.at_3,
        "at_5": found.at_5,
        "mrr": found.mrr,
        "queries": found.queries,
        "ece": found.ece,
        "reliability": [
            {"count": one.count, "mean_weight": one.mean_weight, "right": one.right} for one in found.bins if one.count
        ],
        "confused": [{"adapter": true, "retrieved": other, "count": count} for true, other, count in found.confused],
        "confusion": {
            "labels": labels,
            "counts": [[found.confusion.get((true, other), 0) for other in labels] for true in labels],
        },
    }


def labels_of(confusion: Iterable[tuple[str, str]]) -> list[str]:
    """Return the adapters of a confusion matrix by id; "" stands for none retrieved."""
    return sorted({name for pair in confusion for name in pair})


def _bins(outcomes: Sequence[Outcome]) -> tuple[Bin, ...]:
    members: list[list[Outcome]] = [[] for _ in range(_BINS)]
    for one in outcomes:
        best = one.weights[0] if one.weights else 0.0
        members[min(_BINS - 1, int(best * _BINS))].append(one)
    return tuple(
        Bin(
            len(group),
            sum(one.weights[0] if one.weights else 0.0 for one in group) / len(group) if group else 0.0,
            sum(one.rank == 1 for one in group) / len(group) if group else 0.0,
        )
        for group in members
    )
