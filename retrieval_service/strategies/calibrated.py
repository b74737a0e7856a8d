"""Cosine with the centroid after whitening by the scatter within adapters.

Examples of one adapter differ in ways that say nothing about the adapter, such as the length of the instruction or the
number of elements on the screen. Directions in which they differ much count less. With A = sum_i r_i r_i' the scatter
of the residuals r_i of examples from their adapters' means, df its degrees of freedom and S = A / df, the covariance
within adapters is estimated by (1 - l) S + l tr(S)/dim I. The cosine is taken in the metric of its inverse, up to a
factor M = I - V diag(a / (a + k)) V', with A = V diag(a) V' and k = l/(1 - l) tr(A)/dim. The shrinkage l is the oracle
approximating shrinkage (Chen, Wiesel, Eldar, Hero 2010, eq. 23). It has a closed form, and is 1 without any scatter,
which gives the plain cosine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retrieval_service.embedders.base import FloatArray, normalise
from retrieval_service.strategies.examples import BoolArray, ExampleSet, Float64Array, IntArray
from retrieval_service.strategies.scatter import Residuals, nested_kinds, residuals, scatters, scatters_without

_RANK_TOLERANCE = 1e-10  # relative; smaller eigenvalues are rounding error
_MIN_SQUARED_LENGTH = 1e-24  # avoids division by zero for zero vectors


@dataclass(frozen=True, eq=False)
class Spectrum:
    """A scatter matrix: directions V [dim, r], eigenvalues a [r] above 0, and degrees of freedom."""

    directions: Float64Array
    values: Float64Array
    freedom: int

    @property
    def dim(self) -> int:
        """Dimensions of a vector."""
        return len(self.directions)

    def with_freedom(self, freedom: int) -> Spectrum:
        """Return the spectrum with other degrees of freedom."""
        return Spectrum(self.directions, self.values, freedom)


class Calibrated:
    """Compares with whitened centroids."""

    def __init__(self, examples: ExampleSet, kind: str = "") -> None:
        """Fit on the examples. `kind` is the kind of adapters to tell apart; "" is all of them."""
        self.examples = examples
        self._kind = kind
        self._scatters = scatters(examples) if examples.ids else {}
        self._kinds = nested_kinds(self._scatters, kind)
        self._residuals = residuals(examples, self._kinds)
        self._spectrum = spectrum(self._residuals)
        ridge = ridge_of(self._spectrum.values.sum(), (self._spectrum.values**2).sum(), self._spectrum)
        shrunk = self._spectrum.values / (self._spectrum.values + ridge)
        self._directions: FloatArray = np.asarray(self._spectrum.directions, np.float32)
        self._lost: FloatArray = (1 - np.sqrt(1 - shrunk)).astype(np.float32)
        self._centroids = normalise(self._whiten(examples.means.astype(np.float32)))

    @property
    def own_scale(self) -> BoolArray:
        """Every adapter."""
        return np.ones(len(self.examples.ids), bool)

    def cosines(self, queries: FloatArray) -> Float64Array:
        """Return q'M c_j / sqrt(q'M q c_j'M c_j), [queries, adapters]."""
        return np.asarray(normalise(self._whiten(queries)) @ self._centroids.T, np.float64)

    def left_out(self, rows: IntArray) -> Float64Array:
        """Return the cosines of examples, each with a metric and a mean that exclude it, in closed form.

        Without example i of an adapter with n examples, A becomes A - n/(n-1) r_i r_i', whose inverse follows from the
        eigenvalues of A (Sherman and Morrison) for any shrinkage.
        """
        cosines = np.empty((len(rows), len(self.examples.ids)))
        positions = self._residuals.positions[rows]
        residual_rows = np.zeros((len(rows), self.examples.dim))
        residual_rows[positions >= 0] = self._residuals.vectors[positions[positions >= 0]]
        products = _ProductTable(self.examples, self._spectrum.directions, rows, residual_rows)
        for index, row in enumerate(rows):
            if nested_kinds(scatters_without(self._scatters, self.examples, row), self._kind) != self._kinds:
                refitted = Calibrated(self.examples.without(row), self._kind)
                cosines[index] = refitted.cosines(self.examples.vectors[[row]])[0]
            else:
                count = self._residuals.counts[positions[index]] if positions[index] >= 0 else 0
                cosines[index] = self._downdated(products.of(index), count)
        return cosines

    def _downdated(self, inner: _InnerProducts, count: int) -> Float64Array:
        """Return the cosines without one of `count` residuals in the metric; 0 if the example was not fitted on."""
        values, freedom = self._spectrum.values, self._spectrum.freedom
        factor = count / (count - 1) if count else 0.0
        squares = factor * inner.residual_residual
        first = values.sum() - squares
        second = (values**2).sum() - 2 * factor * (inner.residual**2 * values).sum() + squares**2
        ridge = ridge_of(first, second, self._spectrum.with_freedom(freedom - bool(count)))
        shrunk = values / (values + ridge)
        to_query = inner.means_query - inner.means @ (shrunk * inner.query)
        to_residual = inner.means_residual - inner.means @ (shrunk * inner.residual)
        query_residual = inner.query_residual - float((inner.query * shrunk) @ inner.residual)
        residual_residual = inner.residual_residual - float((inner.residual * shrunk) @ inner.residual)
        denominator = ridge - factor * residual_residual
        gain = factor / denominator if np.isfinite(ridge) and denominator > 0 else 0.0
        numerators = to_query + gain * query_residual * to_residual
        squared = inner.means_means - inner.means_squared @ shrunk + gain * to_residual**2
        query_squared = inner.query_query - float(inner.query**2 @ shrunk) + gain * query_residual**2
        cosines = numerators / np.sqrt(np.maximum(squared * query_squared, _MIN_SQUARED_LENGTH))
        cosines[inner.owner] = cosines[-1]
        return np.asarray(cosines[:-1], np.float64)

    def _whiten(self, vectors: FloatArray) -> FloatArray:
        """Return the vectors [n, dim] times the square root of M."""
        along = (vectors @ self._directions) * self._lost
        return np.asarray(vectors - along @ self._directions.T, np.float32)


@dataclass(frozen=True, eq=False)
class _InnerProducts:
    """Inner products of one example and its residual with each other and all means, and their coordinates along V.

    The last mean is that of the example's adapter without the example.
    """

    owner: int
    query: Float64Array
    residual: Float64Array
    means: Float64Array
    means_squared: Float64Array
    query_query: float
    query_residual: float
    residual_residual: float
    means_query: Float64Array
    means_residual: Float64Array
    means_means: Float64Array


class _ProductTable:
    """The inner products of many examples, computed together. `of` reuses the arrays of the means."""

    def __init__(
        self, examples: ExampleSet, directions: Float64Array, rows: IntArray, residual_rows: Float64Array
    ) -> None:
        self._examples, self._directions, self._rows = examples, directions, rows
        self._queries, self._residuals = examples.vectors[rows].astype(np.float64), residual_rows
        self._queries_along, self._residuals_along = self._queries @ directions, residual_rows @ directions
        self._to_queries, self._to_residuals = self._queries @ examples.means.T, residual_rows @ examples.means.T
        self._along = np.vstack([examples.means @ directions, np.zeros((1, directions.shape[1]))])
        self._along_squared = self._along**2
        self._squares = np.append((examples.means**2).sum(axis=1), 0.0)

    def of(self, index: int) -> _InnerProducts:
        """Return the products of one example, valid until the next call."""
        query, residual = self._queries[index], self._residuals[index]
        own = self._examples.mean_without(self._rows[index])
        self._along[-1] = own @ self._directions
        self._along_squared[-1] = self._along[-1] ** 2
        self._squares[-1] = own @ own
        return _InnerProducts(
            int(self._examples.owners[self._rows[index]]),
            self._queries_along[index],
            self._residuals_along[index],
            self._along,
            self._along_squared,
            float(query @ query),
            float(query @ residual),
            float(residual @ residual),
            np.append(self._to_queries[index], query @ own),
            np.append(self._to_residuals[index], residual @ own),
            self._squares,
        )


def spectrum(fitted: Residuals) -> Spectrum:
    """Return the eigenvalues and directions of the scatter, from the smaller of its two Gram matrices."""
    vectors = fitted.vectors
    count, dim = vectors.shape
    if not count or not fitted.freedom:
        return Spectrum(np.zeros((dim, 0)), np.zeros(0), 0)
    if count < dim:
        values, sides = np.linalg.eigh(vectors @ vectors.T)
        significant = values > _RANK_TOLERANCE * max(values[-1], _RANK_TOLERANCE)
        directions = (vectors.T @ sides[:, significant]) / np.sqrt(values[significant])
    else:
        values, directions = np.linalg.eigh(vectors.T @ vectors)
        significant = values > _RANK_TOLERANCE * max(values[-1], _RANK_TOLERANCE)
        directions = directions[:, significant]
    return Spectrum(directions, values[significant], fitted.freedom)


def ridge_of(first: float, second: float, of: Spectrum) -> float:
    """Return k = l/(1 - l) tr(A)/dim for a scatter with `first` = tr(A) and `second` = tr(A A); infinite for l = 1."""
    if of.freedom < 1 or first <= 0:
        return np.inf
    spread = second - first**2 / of.dim
    shrinkage = 1.0
    if spread > _RANK_TOLERANCE * second:
        shrinkage = min(1.0, ((1 - 2 / of.dim) * second + first**2) / ((of.freedom + 1 - 2 / of.dim) * spread))
    return shrinkage / (1 - shrinkage) * first / of.dim if shrinkage < 1 else np.inf
