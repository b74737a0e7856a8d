"""The whitening metric and the variances within and between adapters that the two-covariance model rests on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retrieval_service.strategies.calibrated import Spectrum, ridge_of
from retrieval_service.strategies.examples import Float64Array, IntArray

#: Whitening trusts the scatter at most half: the estimator's own shrinkage is too light for catalogues of mixed kinds.
_MIN_SHRINKAGE = 0.5
_MIN_RATIO, _MAX_RATIO = 1e-3, 1e3  # of between to within variance, where moments of few adapters go astray


@dataclass(frozen=True)
class Variances:
    """s, the variance within adapters summed over dimensions, and phi = b / s, that between them as a multiple of s."""

    within: float
    ratio: float

    def trust(self, counts: Float64Array | IntArray) -> Float64Array:
        """Return a_c of adapters with `counts` examples."""
        return np.asarray(counts * self.ratio / (counts * self.ratio + 1), np.float64)

    def spread(self, counts: Float64Array | IntArray) -> Float64Array:
        """Return v_c of adapters with `counts` examples; for 0 examples that of an unknown adapter."""
        return np.asarray(1 + self.ratio / (counts * self.ratio + 1), np.float64)


def variances_of(within: float, offsets: float, counts: IntArray) -> Variances:
    """Return s and phi from the moments: `offsets` is the sum of |w(m_c) - g|^2 over the adapters.

    Means of n examples scatter by s / n around their centres, which is subtracted. With a single adapter, or no adapter
    of two examples, there is nothing to estimate one of the two from: both variances are then taken as equal.
    """
    adapters = len(counts)
    total = offsets / (adapters - 1) if adapters > 1 else 0.0
    if within <= 0:
        return Variances(total or 1.0, 1.0)
    if adapters < 2:
        return Variances(within, 1.0)
    between = total - within * float((1 / counts).mean())
    return Variances(within, float(np.clip(between / within, _MIN_RATIO, _MAX_RATIO)))


def ridge(of: Spectrum, first: float | None = None, second: float | None = None) -> float:
    """Return k = l/(1 - l) tr(A)/dim for the larger of the estimated shrinkage and _MIN_SHRINKAGE."""
    trace = float(of.values.sum()) if first is None else first
    squares = float((of.values**2).sum()) if second is None else second
    least = _MIN_SHRINKAGE / (1 - _MIN_SHRINKAGE) * trace / of.dim
    return max(least, ridge_of(trace, squares, of)) if trace > 0 else np.inf


def kept(values: Float64Array, ridge: float) -> Float64Array:
    """Return the share k / (a + k) of each direction that the metric keeps."""
    return np.ones_like(values) if np.isinf(ridge) else ridge / (values + ridge)


def within(of: Spectrum, ridge: float) -> float:
    """Return the trace of the covariance within adapters after whitening; 0 if there is none."""
    if of.freedom < 1 or np.isinf(ridge):
        return float(of.values.sum()) / of.freedom if of.freedom > 0 else 0.0
    return float((of.values * kept(of.values, ridge)).sum()) / of.freedom
