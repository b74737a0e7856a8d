"""Cosine with the mean of an adapter's examples (LoraRetriever, section 3.2)."""

from __future__ import annotations

import numpy as np

from retrieval_service.embedders.base import FloatArray, normalise
from retrieval_service.strategies.examples import BoolArray, ExampleSet, Float64Array, IntArray, lengths


class Centroid:
    """Compares with one mean per adapter."""

    def __init__(self, examples: ExampleSet) -> None:
        self.examples = examples
        self._centroids = normalise(examples.means)

    @property
    def own_scale(self) -> BoolArray:
        """No adapter: the centroid is the common scale."""
        return np.zeros(len(self.examples.ids), bool)

    def cosines(self, queries: FloatArray) -> Float64Array:
        """Return q · c_j, [queries, adapters]."""
        return np.asarray(queries @ self._centroids.T, np.float64)

    def left_out(self, rows: IntArray) -> Float64Array:
        """Return the cosines of examples, each with its adapter's mean taken without it."""
        cosines = self.cosines(self.examples.vectors[rows])
        for index, row in enumerate(rows):
            mean = self.examples.mean_without(row)
            cosines[index, self.examples.owners[row]] = self.examples.vectors[row] @ mean / lengths(mean)
        return cosines
