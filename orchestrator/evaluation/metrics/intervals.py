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


def interval_of_share(share: float, standard_error: float, clusters: int) -> tuple[float, float]:
    """Return share ± t * standard error, t with clusters - 1 degrees of freedom, cut to [0, 1].

    Without a spread to be seen (all clusters right, or all half right), which is not certainty, it is Wilson's
    interval with as many trials as there are clusters: [0, z^2 / (clusters + z^2)] for a share of 0.
    """
    if standard_error > 0:
        margin = student_t(clusters - 1) * standard_error
        return max(0.0, share - margin), min(1.0, share + margin)
    trials = clusters + _Z**2
    middle = (clusters * share + _Z**2 / 2) / trials
    margin = _Z * math.sqrt(clusters * share * (1 - share) + _Z**2 / 4) / trials
    return middle - margin if share > 0 else 0.0, middle + margin if share < 1 else 1.0


def interval_of_difference(difference: float, standard_error: float, clusters: int) -> tuple[float, float]:
    """Return difference ± t * standard error, t with clusters - 1 degrees of freedom, cut to [-1, 1].

    Where all clusters differ alike, which again is not certainty, the margin is z^2 / (clusters + z^2): so many
    clusters would differ otherwise at most (Wilson's bound after none of them did), taken to do so by a whole point.
    """
    margin = student_t(clusters - 1) * standard_error if standard_error > 0 else _Z**2 / (clusters + _Z**2)
    return max(-1.0, difference - margin), min(1.0, difference + margin)
