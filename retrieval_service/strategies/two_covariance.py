"""Log-likelihoods of adapters under a Gaussian for the differences within adapters and one for those between them.

The two-covariance model of speaker verification (Brummer and de Villiers 2010). After whitening w by the scatter within
adapters, an example of adapter c is distributed as N(t_c, s I), and the centre t_c of an adapter as N(g, b I). With n_c
examples of unnormalised mean m_c and phi = b / s, the centre of c is known up to

    a_c = n_c phi / (n_c phi + 1)        how far the mean is trusted against the mean g of all adapters
    v_c = 1 + phi / (n_c phi + 1)        the variance of a new example of c, in units of s
    t_c = g + a_c (w(m_c) - g)

so that adapters with few examples are compared fairly with those that have many. A query q has the log-likelihoods

    l_c = -k/2 [ |w(q) - t_c|^2 / (s v_c) + log v_c ]                  of adapter c
    l_0 = -k/2 [ |w(q) - g|^2 / (s (1 + phi)) + log(1 + phi) ]         of an adapter that is not registered

s and b are traces, estimated by moments. k, the number of dimensions that carry information, is fitted: it maximises
the likelihood of the right adapters of examples that are left out. The weights softmax(l) are then probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retrieval_service.embedders.base import FloatArray
from retrieval_service.strategies.calibrated import spectrum
from retrieval_service.strategies.examples import BoolArray, ExampleSet, Float64Array, IntArray
from retrieval_service.strategies.scatter import nested_kinds, residuals, scatters, scatters_without
from retrieval_service.strategies.temperature import DEFAULT_TEMPERATURE
from retrieval_service.strategies.variances import Variances, kept, ridge, variances_of, within
from retrieval_service.strategies.whitened_left_out import WhitenedLeftOut

#: Bounds the leave-one-out pass that fits k.
_FITTED_ROWS = 512
_LINEAR = 8  # typical log-odds are squashed by a ninth at most
_DIMENSIONS = np.geomspace(0.1, 1e4, 301)  # grid of k; its steps of 3.9 % change a likelihood by less than 0.1 %


@dataclass(frozen=True)
class LogLikelihoods:
    """Of n queries: `known` [n, adapters] for every adapter, `unknown` [n] for an adapter that is not registered."""

    known: Float64Array
    unknown: Float64Array

    @property
    def log_odds(self) -> Float64Array:
        """l_c - l_0, [n, adapters]."""
        return np.asarray(self.known - self.unknown[:, None], np.float64)


@dataclass(frozen=True)
class Gauge:
    """k, the number of dimensions that carry information, and the usual size of log-odds per dimension."""

    dimensions: float = 1.0
    typical: float = 1.0


class TwoCovariance:
    """Compares with templates that account for the number of examples."""

    def __init__(self, examples: ExampleSet, kind: str = "", gauge: Gauge | None = None) -> None:
        """Fit on the examples. `kind` is the kind of adapters to tell apart; "" is all of them.

        `gauge` is known, or fitted if it is None.
        """
        self.examples = examples
        self._kind = kind
        self._scatters = scatters(examples) if examples.ids else {}
        self._kinds = nested_kinds(self._scatters, kind)
        self._residuals = residuals(examples, self._kinds)
        self._spectrum = spectrum(self._residuals)
        self._ridge = ridge(self._spectrum)
        self._centre: Float64Array = examples.means.mean(axis=0) if examples.ids else np.zeros(examples.dim)
        self._variances = self._fit_variances()
        counts = examples.counts
        trust = self._variances.trust(counts)[:, None]
        self._templates = self._whiten(self._centre + trust * (examples.means - self._centre))
        self._squares = (self._templates**2).sum(axis=1)
        self.gauge = Gauge()
        self.gauge = self._fit_gauge() if gauge is None else gauge

    @property
    def own_scale(self) -> BoolArray:
        """Every adapter."""
        return np.ones(len(self.examples.ids), bool)

    def cosines(self, queries: FloatArray) -> Float64Array:
        """Return a similarity in (-1, 1): the log-odds of each adapter against an unknown one, squashed."""
        return _squashed(self.log_likelihoods(queries), self.gauge)

    def left_out(self, rows: IntArray) -> Float64Array:
        """Return the similarities of examples, each as if it had not been part of the fit, except for k."""
        return _squashed(self.left_out_log_likelihoods(rows), self.gauge)

    def log_likelihoods(self, queries: FloatArray) -> LogLikelihoods:
        """Return l_c and l_0 of queries [n, dim]."""
        whitened = self._whiten(queries)
        squares = (whitened**2).sum(axis=1)
        distances = squares[:, None] - 2 * whitened @ self._templates.T + self._squares
        centre = self._whiten(self._centre[None])[0]
        unknown = squares - 2 * whitened @ centre + centre @ centre
        return self._likelihoods(distances, unknown, self._variances, self.examples.counts)

    def left_out_log_likelihoods(self, rows: IntArray) -> LogLikelihoods:
        """Return l_c and l_0 of examples, each without its part in means, metric, s and phi, in closed form.

        Without residual r of an adapter with n fitted examples, A becomes A - n/(n-1) r r', whose inverse follows from
        the eigenvalues of A (Sherman and Morrison) for any shrinkage.
        """
        table = WhitenedLeftOut(self.examples, self._spectrum, self._residuals)
        known, unknown = np.empty((len(rows), len(self.examples.ids))), np.empty(len(rows))
        for index, row in enumerate(rows):
            if nested_kinds(scatters_without(self._scatters, self.examples, int(row)), self._kind) == self._kinds:
                left = table.of(int(row))
                found = self._likelihoods(left.templates[None], left.centre, left.variances, left.counts)
            else:
                refitted = TwoCovariance(self.examples.without(int(row)), self._kind, self.gauge)
                found = refitted.log_likelihoods(self.examples.vectors[[row]])
            known[index], unknown[index] = found.known[0], found.unknown[0]
        return LogLikelihoods(known, unknown)

    def _likelihoods(
        self, distances: Float64Array, to_centre: Float64Array, variances: Variances, counts: IntArray
    ) -> LogLikelihoods:
        spread = variances.spread(counts)
        unknown_spread = 1 + variances.ratio
        return LogLikelihoods(
            -self.gauge.dimensions / 2 * (distances / (variances.within * spread) + np.log(spread)),
            -self.gauge.dimensions / 2 * (to_centre / (variances.within * unknown_spread) + np.log(unknown_spread)),
        )

    def _fit_variances(self) -> Variances:
        offsets = self._whiten(self.examples.means - self._centre) if self.examples.ids else np.zeros((0, 1))
        return variances_of(within(self._spectrum, self._ridge), float((offsets**2).sum()), self.examples.counts)

    def _fit_gauge(self) -> Gauge:
        """Return the k that makes the right adapters of left-out examples most likely.

        Without such examples, the k that weighs about as a softmax of cosines at the default temperature.
        """
        rows = self.examples.testable(_FITTED_ROWS)
        if len(self.examples.ids) < 2 or not len(rows):
            one = np.ones(1)
            slope = float(self._variances.trust(one)[0]) / (self._variances.within * self._variances.spread(one)[0])
            return Gauge(float(1 / (slope * DEFAULT_TEMPERATURE)))
        found = self.left_out_log_likelihoods(rows)
        known = found.known
        shifted = known - known.max(axis=1, keepdims=True)
        right = shifted[np.arange(len(rows)), self.examples.owners[rows]]
        losses = [np.mean(np.log(np.exp(k * shifted).sum(axis=1)) - k * right) for k in _DIMENSIONS]
        return Gauge(float(_DIMENSIONS[int(np.argmin(losses))]), float(np.abs(found.log_odds).mean()))

    def _whiten(self, vectors: FloatArray | Float64Array) -> Float64Array:
        directions = self._spectrum.directions
        lost = 1 - np.sqrt(kept(self._spectrum.values, self._ridge))
        along = (vectors @ directions) * lost
        return np.asarray(vectors - along @ directions.T, np.float64)


def _squashed(found: LogLikelihoods, gauge: Gauge) -> Float64Array:
    """Return the log-odds per dimension in (-1, 1), nearly linear where they usually are.

    x / (c + |x|) keeps the order where a sigmoid rounds to 1.
    """
    odds = found.log_odds / gauge.dimensions
    return np.asarray(odds / (_LINEAR * gauge.typical + np.abs(odds)), np.float64)
