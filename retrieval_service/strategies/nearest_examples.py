"""Mean cosine with the three examples of an adapter that are nearest to the query."""

from __future__ import annotations

import numpy as np

from retrieval_service.embedders.base import FloatArray
from retrieval_service.strategies.examples import BoolArray, ExampleSet, Float64Array, IntArray, chunks

NEIGHBOURS = 3


class NearestExamples:
    """Compares with the three nearest examples of each adapter, or with all if it has fewer."""

    def __init__(self, examples: ExampleSet) -> None:
        self.examples = examples
        self._width = int(examples.counts.max(initial=0))
        inside = np.arange(self._width) < examples.counts[:, None]
        self._places = np.where(inside, examples.starts[:, None] + np.arange(self._width), 0)
        self._outside = ~inside

    @property
    def own_scale(self) -> BoolArray:
        """The adapters with more than one vector."""
        return self.examples.counts > 1

    def cosines(self, queries: FloatArray) -> Float64Array:
        """Return the mean of the three largest q · x_i over the examples x_i of each adapter, [queries, adapters]."""
        cosines = np.empty((len(queries), len(self.examples.ids)))
        for part in chunks(len(queries), 64):
            cosines[part] = self._mean_of_nearest(queries[part] @ self.examples.vectors.T)
        return cosines

    def left_out(self, rows: IntArray) -> Float64Array:
        """Return the cosines of examples, each excluded from its own neighbours."""
        result = np.empty((len(rows), len(self.examples.ids)))
        for part in chunks(len(rows), 64):
            cosines = self.examples.vectors[rows[part]] @ self.examples.vectors.T
            cosines[np.arange(len(cosines)), rows[part]] = -np.inf
            result[part] = self._mean_of_nearest(cosines)
        return result

    def _mean_of_nearest(self, cosines: FloatArray) -> Float64Array:
        by_adapter = cosines[:, self._places].astype(np.float64)
        by_adapter[:, self._outside] = -np.inf
        if self._width > NEIGHBOURS:
            by_adapter = np.partition(by_adapter, -NEIGHBOURS, axis=2)[:, :, -NEIGHBOURS:]
        present = np.isfinite(by_adapter)
        return np.asarray(np.where(present, by_adapter, 0).sum(axis=2) / np.maximum(present.sum(axis=2), 1), np.float64)
