"""Means with standard errors that know which samples belong together."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchestrator.evaluation.metrics.intervals import interval_of_difference, interval_of_share

_ROUNDING = 1e-12


@dataclass(frozen=True)
class Estimate:
    """A mean of `count` values in `clusters` clusters, and the ends of its 95 % interval.

    None: unscored, for want of values or of a second cluster.
    """

    value: float | None
    standard_error: float | None
    count: int
    clusters: int
    low: float | None = None
    high: float | None = None


UNSCORED = Estimate(None, None, 0, 0)


def clustered_mean(values: Sequence[float], clusters: Sequence[str]) -> Estimate:
    """Return the mean of `values` in [0, 1] and its standard error, clustered: those of one cluster may depend on each
    other.

    With S_g the sum and n_g the number of the values of cluster g, N = sum_g n_g and G clusters, the mean is the ratio
    m = sum_g S_g / N, and its cluster-robust (linearised) standard error is

        sqrt(G / (G - 1) * sum_g (S_g - m n_g)^2) / N

    which is std(ddof=1) / sqrt(N) when every cluster holds one value. One cluster says nothing of the spread: its
    standard error is None. The interval is that of intervals.interval_of_share.
    """
    return _clustered(values, clusters, interval_of_share)


def clustered_mean_of_differences(values: Sequence[float], clusters: Sequence[str]) -> Estimate:
    """Return the same of differences of scores, in [-1, 1], with the interval of intervals.interval_of_difference."""
    return _clustered(values, clusters, interval_of_difference)


def _clustered(
    values: Sequence[float], clusters: Sequence[str], interval: Callable[[float, float, int], tuple[float, float]]
) -> Estimate:
    sums: defaultdict[str, float] = defaultdict(float)
    sizes: defaultdict[str, int] = defaultdict(int)
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] += value
        sizes[cluster] += 1
    total = len(values)
    if not total:
        return UNSCORED
    mean = math.fsum(values) / total
    groups = len(sums)
    if groups == 1:
        return Estimate(mean, None, total, 1)
    spread = math.fsum((sums[cluster] - mean * sizes[cluster]) ** 2 for cluster in sums)
    error = math.sqrt(groups / (groups - 1) * spread) / total
    error = error if error > _ROUNDING else 0.0
    return Estimate(mean, error, total, groups, *interval(mean, error, groups))
