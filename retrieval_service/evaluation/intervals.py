"""Intervals of shares and of paired differences whose queries are clustered by adapter."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

_LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A 95 % interval."""

    low: float
    high: float


def share_interval(hits: Sequence[bool], clusters: Sequence[Hashable]) -> Interval:
    """Return a Wilson interval with the effective sample size and Student's t of the number of clusters.

    The effective size is p (1 - p) over the variance of the mean, in which queries of a cluster may depend on each
    other; at p of 0 or 1, where that variance is 0, the number of queries.
    """
    count, share = len(hits), fmean(hits)
    variance = _variance_of_mean([float(hit) for hit in hits], clusters)
    effective = share * (1 - share) / variance if variance > 0 else float(count)
    effective = min(effective, float(count))
    squared = _student(len(set(clusters)) - 1) ** 2
    scale = 1 + squared / effective
    centre = (share + squared / (2 * effective)) / scale
    half = math.sqrt(squared / effective * (share * (1 - share) + squared / (4 * effective))) / scale
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences and its interval."""

    mean: float
    interval: Interval


def paired_difference(first: Sequence[float], second: Sequence[float], clusters: Sequence[Hashable]) -> Difference:
    """Return the mean of second - first over the same queries, with an interval clustered by `clusters`."""
    differences = [after - before for before, after in zip(first, second, strict=True)]
    mean = fmean(differences)
    half = _student(len(set(clusters)) - 1) * math.sqrt(_variance_of_mean(differences, clusters))
    return Difference(mean, Interval(mean - half, mean + half))


def _variance_of_mean(values: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """Return the cluster-robust variance of the mean, with the usual G / (G - 1)."""
    mean = fmean(values)
    sums: dict[Hashable, float] = {}
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + value - mean
    groups = len(sums)
    if groups < 2:
        return 0.0
    total: Mapping[Hashable, float] = sums
    return groups / (groups - 1) * math.fsum(part**2 for part in total.values()) / len(values) ** 2


def _student(freedom: int) -> float:
    """Return the two-sided 95 % quantile of Student's t, by its expansion in 1/freedom (Abramowitz, Stegun 26.7.5)."""
    z = NormalDist().inv_cdf((1 + _LEVEL) / 2)
    if freedom < 1:
        return z
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / freedom**power for power, term in enumerate(terms, start=1))
