"""Distances of examples from the templates of a catalogue without them, in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retrieval_service.strategies.calibrated import Spectrum
from retrieval_service.strategies.examples import ExampleSet, Float64Array, IntArray
from retrieval_service.strategies.scatter import Residuals
from retrieval_service.strategies.variances import Variances, kept, ridge, variances_of


class WhitenedLeftOut:
    """Distances of one example from the templates of a catalogue without it, in O(adapters (dim + rank))."""

    def __init__(self, examples: ExampleSet, of: Spectrum, fitted: Residuals) -> None:
        self._examples, self._spectrum, self._fitted = examples, of, fitted
        self._along: Float64Array = examples.means @ of.directions
        self._squares: Float64Array = (examples.means**2).sum(axis=1)
        self._centre: Float64Array = examples.means.mean(axis=0)

    def of(self, row: int) -> LeftOutDistances:
        """Return the distances of example `row`, with the variances and the counts without it."""
        examples, means = self._examples, self._examples.means
        owner, position = int(examples.owners[row]), int(self._fitted.positions[row])
        if position >= 0:
            metric = _Metric.without(self._spectrum, self._fitted.vectors[position], int(self._fitted.counts[position]))
        else:
            metric = _Metric.without(self._spectrum, np.zeros(examples.dim), 0)
        own = examples.mean_without(row)

        def inner(vector: Float64Array) -> Float64Array:
            """Return the inner products of all means, the owner's without the example, with a vector."""
            products = np.asarray(means @ vector, np.float64)
            products[owner] = own @ vector
            return products

        along, squares, counts = self._along.copy(), self._squares.copy(), examples.counts.copy()
        along[owner], squares[owner] = own @ self._spectrum.directions, own @ own
        counts[owner] -= 1
        query = examples.vectors[row].astype(np.float64)
        centre = self._centre + (own - means[owner]) / len(examples.ids)
        templates = metric.view(along, inner(metric.residual))
        query_view, centre_view = metric.view_of(query), metric.view_of(centre)
        to_query = templates.times(inner(query), query_view)
        to_centre = templates.times(inner(centre), centre_view)
        return LeftOutDistances.of(
            squares=templates.squares(squares),
            to_query=to_query,
            to_centre=to_centre,
            query=float(query_view.squares(np.array([query @ query]))[0]),
            query_centre=float(query_view.times(np.array([query @ centre]), centre_view)[0]),
            within=metric.within,
            counts=counts,
        )


@dataclass(frozen=True, eq=False)
class LeftOutDistances:
    """|w(q) - t_c|^2 [adapters] and |w(q) - g|^2 [1] of one query, and the variances and counts behind them."""

    templates: Float64Array
    centre: Float64Array
    variances: Variances
    counts: IntArray

    @classmethod
    def of(
        cls,
        *,
        squares: Float64Array,
        to_query: Float64Array,
        to_centre: Float64Array,
        query: float,
        query_centre: float,
        within: float,
        counts: IntArray,
    ) -> LeftOutDistances:
        """Return the distances from inner products in the metric: of means, query q and centre g."""
        centre = float(to_centre.mean())
        variances = variances_of(within, float((squares - 2 * to_centre + centre).sum()), counts)
        trust = variances.trust(counts)
        template = (1 - trust) ** 2 * centre + 2 * trust * (1 - trust) * to_centre + trust**2 * squares
        to_template = (1 - trust) * query_centre + trust * to_query
        return cls(query - 2 * to_template + template, np.array([query - 2 * query_centre + centre]), variances, counts)


@dataclass(frozen=True, eq=False)
class _Metric:
    """M' = I - V diag(lost) V' + gain (M r)(M r)', the metric without residual r; gain 0: r was not fitted on.

    `within` is the trace of the covariance within adapters in this metric.
    """

    spectrum: Spectrum
    lost: Float64Array
    residual: Float64Array
    residual_along: Float64Array
    gain: float
    within: float

    @classmethod
    def without(cls, of: Spectrum, residual: Float64Array, count: int) -> _Metric:
        """Return the metric of a spectrum without a residual of an adapter with `count` fitted examples; 0: of all."""
        values, along = of.values, residual @ of.directions
        factor = count / (count - 1) if count > 1 else 0.0
        squared = float(residual @ residual)
        reduced = of.with_freedom(of.freedom - bool(factor))
        cut = ridge(
            reduced,
            first=values.sum() - factor * squared,
            second=(values**2).sum() - 2 * factor * float(along**2 @ values) + (factor * squared) ** 2,
        )
        lost = 1 - kept(values, cut)
        denominator = cut - factor * (squared - float(along**2 @ lost))
        gain = factor / denominator if np.isfinite(cut) and denominator > 0 else 0.0
        within = 0.0
        if np.isfinite(cut) and reduced.freedom > 0:
            # The scatter in the metric is k (dim - tr M'), with tr M' = dim - sum(lost) + gain r'MMr.
            twice = squared - 2 * float(along**2 @ lost) + float(along**2 @ lost**2)
            within = cut * (float(lost.sum()) - gain * twice) / reduced.freedom
        return cls(of, lost, residual, along, gain, within)

    def view_of(self, vector: Float64Array) -> _View:
        """Return one vector as the metric sees it."""
        return self.view((vector @ self.spectrum.directions)[None], np.array([vector @ self.residual]))

    def view(self, along: Float64Array, to_residual: Float64Array) -> _View:
        """Return vectors with coordinates `along` V [n, rank] and these inner products with r [n]."""
        return _View(self, along, to_residual - along @ (self.lost * self.residual_along))


@dataclass(frozen=True, eq=False)
class _View:
    """Vectors [n] by their coordinates along V, and their inner products with r in the metric before its removal."""

    metric: _Metric
    along: Float64Array
    to_residual: Float64Array

    def squares(self, squares: Float64Array) -> Float64Array:
        """Return x'M'x of vectors whose squared lengths are `squares`."""
        return np.asarray(
            squares - self.along**2 @ self.metric.lost + self.metric.gain * self.to_residual**2, np.float64
        )

    def times(self, products: Float64Array, one: _View) -> Float64Array:
        """Return x'M'y with one vector y, whose inner products with the vectors are `products`."""
        return np.asarray(
            products
            - self.along @ (self.metric.lost * one.along[0])
            + self.metric.gain * one.to_residual[0] * self.to_residual,
            np.float64,
        )
