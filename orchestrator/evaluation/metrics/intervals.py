"""95 % intervals of clustered means."""

from __future__ import annotations

import math
from statistics import NormalDist

LEVEL = 0.95
_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)


def student_t(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's t distribution, right to 0.2 %.

    In closed form for one and two degrees of freedom, else by the expansion in 1/degrees of Abramowitz & Stegun 26.7.5.
    """
    if degrees < 1:
        raise ValueError(f"Student's t needs at least one degree of freedom, got {degrees}")
    if degrees == 1:
        return math.tan(math.pi * LEVEL / 2)
    if degrees == 2:
        return LEVEL * math.sqrt(2 / (1 - LEVEL**2))
    z = _Z
    terms: tuple[float, ...] = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(sum(term / degrees**power for power, term in enumerate(terms)))


def interval_of_mean(mean: float, standard_error: float, clusters: int) -> tuple[float, float]:
    """Return mean ± t * standard error, t with clusters - 1 degrees of freedom."""
    margin = student_t(clusters - 1) * standard_error
    return mean - margin, mean + margin


def interval_of_share(share: float, standard_error: float, clusters: int) -> tuple[float, float]:
    """Return the interval of a share in [0, 1], cut to that range.

    A share of exactly 0 or 1 has no spread to be seen, which is not certainty: there it is Wilson's interval, with as
    many trials as there are clusters.
    """
    if standard_error > 0:
        low, high = interval_of_mean(share, standard_error, clusters)
        return max(0.0, low), min(1.0, high)
    if share not in (0.0, 1.0):
        return share, share
    unseen = _Z**2 / (clusters + _Z**2)
    return (1 - unseen, 1.0) if share else (0.0, unseen)
