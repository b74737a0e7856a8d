"""Means with cluster-robust standard errors and 95 % intervals."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

_LEVEL = 0.95
_Z = NormalDist().inv_cdf((1 + _LEVEL) / 2)
_ROUNDING = 1e-12
"""Smaller standard errors are rounding noise of equal clusters and count as 0."""


@dataclass(frozen=True)
class Estimate:
    """A mean of `count` values in `clusters` clusters, with its 95 % interval [`low`, `high`].

    `value` is None without values; `standard_error`, `low` and `high` are None without a second cluster.
    """

    value: float | None
    standard_error: float | None
    count: int
    clusters: int
    low: float | None = None
    high: float | None = None


UNSCORED = Estimate(None, None, 0, 0)


def clustered_mean(values: Sequence[float], clusters: Sequence[str]) -> Estimate:
    """Return the mean of `values` in [0, 1] and its standard error, clustered.

    Values of one cluster may depend on each other. With S_g the sum and n_g the number of the values of cluster g,
    N = sum_g n_g and G clusters, the mean is the ratio m = sum_g S_g / N, and its cluster-robust (linearised) standard
    error is

        sqrt(G / (G - 1) * sum_g (S_g - m n_g)^2) / N

    which is std(ddof=1) / sqrt(N) if every cluster has one value. A single cluster gives no estimate of the spread: its
    standard error is None. The interval is that of `interval_of_share`.
    """
    return _clustered(values, clusters, interval_of_share)


def clustered_mean_of_differences(values: Sequence[float], clusters: Sequence[str]) -> Estimate:
    """Return the same for differences of scores in [-1, 1], with the interval of `interval_of_difference`."""
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


def student_t(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's t distribution, accurate to 0.2 %.

    Closed form for one and two degrees of freedom, otherwise the expansion in 1/degrees of Abramowitz & Stegun 26.7.5.
    """
    if degrees < 1:
        raise ValueError(f"Student's t needs at least one degree of freedom, got {degrees}")
    if degrees == 1:
        return math.tan(math.pi * _LEVEL / 2)
    if degrees == 2:
        return _LEVEL * math.sqrt(2 / (1 - _LEVEL**2))
    z = _Z
    terms: tuple[float, ...] = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(sum(term / degrees**power for power, term in enumerate(terms)))


def interval_of_share(share: float, standard_error: float, clusters: int) -> tuple[float, float]:
    """Return share ± t * standard error, clipped to [0, 1], with clusters - 1 degrees of freedom.

    If the standard error is 0 (all clusters score alike), which is not certainty, returns Wilson's interval with one
    trial per cluster: [0, z^2 / (clusters + z^2)] for a share of 0.
    """
    if standard_error > 0:
        margin = student_t(clusters - 1) * standard_error
        return max(0.0, share - margin), min(1.0, share + margin)
    trials = clusters + _Z**2
    middle = (clusters * share + _Z**2 / 2) / trials
    margin = _Z * math.sqrt(clusters * share * (1 - share) + _Z**2 / 4) / trials
    return middle - margin if share > 0 else 0.0, middle + margin if share < 1 else 1.0


def interval_of_difference(difference: float, standard_error: float, clusters: int) -> tuple[float, float]:
    """Return difference ± t * standard error, clipped to [-1, 1], with clusters - 1 degrees of freedom.

    If the standard error is 0, which is not certainty, the margin is z^2 / (clusters + z^2): Wilson's upper bound on
    the share of clusters that would differ otherwise, given that none did, each assumed to differ by a whole point.
    """
    margin = student_t(clusters - 1) * standard_error if standard_error > 0 else _Z**2 / (clusters + _Z**2)
    return max(-1.0, difference - margin), min(1.0, difference + margin)
