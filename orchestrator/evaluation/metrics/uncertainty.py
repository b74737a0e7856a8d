"""Means with standard errors that know which samples belong together."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A mean of `count` values in `clusters` clusters. None: unscored, for want of values or of a second cluster."""

    value: float | None
    standard_error: float | None
    count: int
    clusters: int


UNSCORED = Estimate(None, None, 0, 0)


def clustered_mean(values: Sequence[float], clusters: Sequence[str]) -> Estimate:
    """Return the mean of `values` and its standard error, clustered: values of one cluster may depend on each other.

    With S_g the sum and n_g the number of the values of cluster g, N = sum_g n_g and G clusters, the mean is the ratio
    m = sum_g S_g / N, and its cluster-robust (linearised) standard error is

        sqrt(G / (G - 1) * sum_g (S_g - m n_g)^2) / N

    which is std(ddof=1) / sqrt(N) when every cluster holds one value. One cluster says nothing of the spread: its
    standard error is None.
    """
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
    return Estimate(mean, math.sqrt(groups / (groups - 1) * spread) / total, total, groups)
