"""Weightings: pure functions from similarities to the weights of a composition. Nothing renormalises them later."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import assert_never

from infra.contract.retrieval import Weighting

CLEAR = 0.9  # the docs and the contract promise this value


def weigh(
    similarities: Sequence[float], weighting: Weighting, temperature: float, log_weights: Sequence[float]
) -> list[float]:
    """Return the weight of each match, in the same order.

    `temperature` applies to softmax and clear_best. `log_weights` are logarithms of the adapters' probabilities up to a
    constant, for the weighting of that name.
    """
    match weighting:
        case Weighting.UNIFORM:
            return uniform(len(similarities))
        case Weighting.SOFTMAX:
            return softmax(similarities, temperature)
        case Weighting.SIMILARITY:
            return proportional(similarities)
        case Weighting.CLEAR_BEST:
            return clear_best(similarities, temperature)
        case Weighting.PROBABILITY:
            return softmax(log_weights, 1.0)
        case _:
            assert_never(weighting)


def uniform(count: int) -> list[float]:
    """Return 1/k for each of k matches (LoraRetriever, section 3.3)."""
    return [1.0 / count] * count if count else []


def softmax(similarities: Sequence[float], temperature: float) -> list[float]:
    """Return exp(s_j / T) / sum_i exp(s_i / T), with T > 0."""
    if not similarities:
        return []
    highest = max(similarities)
    exponentials = [math.exp((similarity - highest) / temperature) for similarity in similarities]
    total = math.fsum(exponentials)
    return [exponential / total for exponential in exponentials]


def clear_best(similarities: Sequence[float], temperature: float) -> list[float]:
    """Return the softmax weights, or all weight on the best match if its softmax weight is at least CLEAR.

    With two adapters, that takes a margin of T ln(9) in similarity.
    """
    weights = softmax(similarities, temperature)
    if not weights or max(weights) < CLEAR:
        return weights
    best = weights.index(max(weights))
    return [float(index == best) for index in range(len(weights))]


def proportional(similarities: Sequence[float]) -> list[float]:
    """Return max(s_j, 0) / sum_i max(s_i, 0).

    If no similarity is above 0, every weight is 0: nothing resembles the prompt, and a mixture of weights 0 is the base
    model alone.
    """
    clipped = [max(similarity, 0.0) for similarity in similarities]
    total = math.fsum(clipped)
    return [value / total for value in clipped] if total > 0 else [0.0] * len(clipped)
