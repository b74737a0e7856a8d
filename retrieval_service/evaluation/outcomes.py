"""What retrieval returned for prompts whose adapter is known, and the scores computed from it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from retrieval_service.evaluation.intervals import Interval, share_interval

_BINS = 10


@dataclass(frozen=True)
class Outcome:
    """One prompt: its true adapter, that adapter's rank starting at 1, and the retrieved adapters with weights.

    `rank` is None if the adapter was not retrieved. `loss` is -log of the probability of the true adapter, if known.
    """

    truth: str
    rank: int | None
    retrieved: tuple[str, ...]
    weights: tuple[float, ...]
    loss: float | None = None

    @property
    def is_right(self) -> bool:
        """Whether the true adapter was retrieved first."""
        return self.rank == 1


@dataclass(frozen=True)
class WeightBin:
    """Prompts whose best match has a weight in one tenth of [0, 1]: their mean weight, and the share that is right."""

    count: int
    mean_weight: float
    right: float


@dataclass(frozen=True)
class Scores:
    """Shares of prompts in [0, 1]; `confusion` counts (adapter, adapter retrieved first).

    `at_1_interval` is a 95 % interval of at_1 clustered by adapter; `nll` the mean loss, None if not known.
    """

    queries: int
    at_1: float
    at_1_interval: Interval
    nll: float | None
    at_3: float
    at_5: float
    mrr: float
    ece: float
    bins: tuple[WeightBin, ...]
    confusion: dict[tuple[str, str], int]

    @property
    def confused(self) -> list[tuple[str, str, int]]:
        """Pairs (adapter, adapter retrieved instead, how often), the most frequent first."""
        wrong = [(true, other, count) for (true, other), count in self.confusion.items() if true != other]
        return sorted(wrong, key=lambda pair: (-pair[2], pair[0], pair[1]))


def compute_scores(outcomes: Sequence[Outcome]) -> Scores:
    """Return the scores of at least one outcome.

    mrr is the mean of 1/rank, 0 if the adapter was not retrieved. ece is the expected calibration error of the
    first match's weight taken as the probability that it is right (Guo et al. 2017, eq. 3, ten bins).
    """
    count = len(outcomes)
    bins = _bins(outcomes)
    at_1, at_3, at_5 = (
        sum(outcome.rank is not None and outcome.rank <= k for outcome in outcomes) / count for k in (1, 3, 5)
    )
    return Scores(
        count,
        at_1,
        share_interval([outcome.is_right for outcome in outcomes], [outcome.truth for outcome in outcomes]),
        _mean_loss(outcomes),
        at_3,
        at_5,
        mrr=sum(1 / outcome.rank for outcome in outcomes if outcome.rank is not None) / count,
        ece=sum(group.count * abs(group.mean_weight - group.right) for group in bins) / count,
        bins=bins,
        confusion=dict(
            Counter((outcome.truth, outcome.retrieved[0] if outcome.retrieved else "") for outcome in outcomes)
        ),
    )


def as_json(scores: Scores) -> dict[str, Any]:
    """Return the scores as JSON: at_1, at_3, at_5 and mrr in [0, 1], calibration and confusion."""
    labels = labels_of(scores.confusion)
    return {
        "at_1": scores.at_1,
        "at_1_interval": [scores.at_1_interval.low, scores.at_1_interval.high],
        "nll": scores.nll,
        "at_3": scores.at_3,
        "at_5": scores.at_5,
        "mrr": scores.mrr,
        "queries": scores.queries,
        "ece": scores.ece,
        "reliability": [
            {"count": group.count, "mean_weight": group.mean_weight, "right": group.right}
            for group in scores.bins
            if group.count
        ],
        "confused": [{"adapter": true, "retrieved": other, "count": count} for true, other, count in scores.confused],
        "confusion": {
            "labels": labels,
            "counts": [[scores.confusion.get((true, other), 0) for other in labels] for true in labels],
        },
    }


def labels_of(confusion: Iterable[tuple[str, str]]) -> list[str]:
    """Return the adapters of a confusion matrix by id; "" means none retrieved."""
    return sorted({name for pair in confusion for name in pair})


def _mean_loss(outcomes: Sequence[Outcome]) -> float | None:
    losses = [outcome.loss for outcome in outcomes if outcome.loss is not None]
    return math.fsum(losses) / len(losses) if losses else None


def _bins(outcomes: Sequence[Outcome]) -> tuple[WeightBin, ...]:
    members: list[list[Outcome]] = [[] for _ in range(_BINS)]
    for outcome in outcomes:
        members[min(_BINS - 1, int(_best_weight(outcome) * _BINS))].append(outcome)
    return tuple(
        WeightBin(
            len(group),
            sum(map(_best_weight, group)) / len(group) if group else 0.0,
            sum(outcome.is_right for outcome in group) / len(group) if group else 0.0,
        )
        for group in members
    )


def _best_weight(outcome: Outcome) -> float:
    return outcome.weights[0] if outcome.weights else 0.0
