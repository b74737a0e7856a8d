"""How much better one strategy is than another on the same questions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.evaluation.metrics.uncertainty import Estimate, clustered_mean_of_differences


@dataclass(frozen=True)
class Graded:
    """The score of one question, in [0, 1], and the cluster (episode) that it depends on."""

    cluster: str
    score: float


def paired_difference(first: Mapping[object, Graded], second: Mapping[object, Graded]) -> Estimate:
    """Return the mean of first - second over the questions that both scored, with its clustered standard error.

    A question that one of them left unscored tells nothing of the difference and is left out. Differences of one
    question are much less spread than the two scores, so this interval is the one to judge by.
    """
    both = [key for key in first if key in second]
    differences = [first[key].score - second[key].score for key in both]
    return clustered_mean_of_differences(differences, [first[key].cluster for key in both])
