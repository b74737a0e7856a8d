"""Cosine with the nearest of several means an adapter, found by spherical k-means over its examples."""

from __future__ import annotations

import numpy as np

from retrieval_service.embedders.base import FloatArray, normalise
from retrieval_service.strategies.examples import BoolArray, ExampleSet, Float64Array, IntArray, chunks

MAX_EXEMPLARS = 3
EXAMPLES_AN_EXEMPLAR = 5
_STARTS = 4
_ROUNDS = 25
_SEED = 20


class MultiCentroid:
    """At most three exemplars an adapter, each the mean of five examples on average: fewer examples, fewer exemplars.

    With less than ten examples an adapter has one exemplar, its centroid.
    """

    def __init__(self, examples: ExampleSet) -> None:
        self.examples = examples
        found = [find_exemplars(examples.vectors[examples.rows_of(index)]) for index in range(len(examples.ids))]
        counts = np.array([len(one) for one in found], np.int64)
        self._own_scale = counts > 1
        self._starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
        self._exemplars = np.concatenate(found) if found else np.zeros((0, examples.dim), np.float32)

    @property
    def own_scale(self) -> BoolArray:
        """The adapters with more than one exemplar."""
        return self._own_scale

    def cosines(self, queries: FloatArray) -> Float64Array:
        """Return max_e q · e over the exemplars e of each adapter, [queries, adapters]."""
        found = np.empty((len(queries), len(self.examples.ids)))
        for part in chunks(len(queries)) if len(self.examples.ids) else ():
            found[part] = np.maximum.reduceat(queries[part] @ self._exemplars.T, self._starts, axis=1)
        return found

    def left_out(self, rows: IntArray) -> Float64Array:
        """Return the cosines of examples, the exemplars of each one's adapter found anew without it."""
        found = self.cosines(self.examples.vectors[rows])
        for index, row in enumerate(rows):
            owner = self.examples.owners[row]
            others = np.setdiff1d(self.examples.rows_of(owner), [row])
            found[index, owner] = (find_exemplars(self.examples.vectors[others]) @ self.examples.vectors[row]).max()
        return found


def find_exemplars(vectors: FloatArray) -> FloatArray:
    """Return the means, [k, dim] of length 1, that k-means finds in vectors of length 1: always the same ones.

    The best of four k-means++ starts by the sum of cosines; k is a fifth of the vectors, from 1 to 3.
    """
    count = min(MAX_EXEMPLARS, max(1, len(vectors) // EXAMPLES_AN_EXEMPLAR))
    if count == 1:
        return normalise(vectors.mean(axis=0, keepdims=True, dtype=np.float64))
    cosines = np.asarray(vectors @ vectors.T, np.float64)  # all that k-means needs of them
    generator = np.random.default_rng(_SEED)
    best, most = np.zeros(len(vectors), np.int64), -np.inf
    for _ in range(_STARTS):
        groups, total = _k_means(cosines, _plus_plus(cosines, count, generator))
        if total > most + 1e-9:
            best, most = groups, total
    return normalise(np.stack([vectors[best == group].mean(axis=0, dtype=np.float64) for group in np.unique(best)]))


def _plus_plus(cosines: Float64Array, count: int, generator: np.random.Generator) -> IntArray:
    chosen = [int(generator.integers(len(cosines)))]
    while len(chosen) < count:
        distance = np.clip(1 - cosines[:, chosen].max(axis=1), 0, None)
        if distance.sum() <= 0:
            break
        chosen.append(int(generator.choice(len(cosines), p=distance / distance.sum())))
    return np.asarray(chosen, np.int64)


def _k_means(cosines: Float64Array, chosen: IntArray) -> tuple[IntArray, float]:
    """Return the group of each vector, and the sum of its cosines with the groups' means, given all pairs' cosines."""
    to_means = cosines[:, chosen]
    groups = to_means.argmax(axis=1)
    for _ in range(_ROUNDS):
        members = np.eye(len(chosen))[groups]
        sums = cosines @ members
        norms = np.sqrt(np.maximum((members * sums).sum(axis=0), 1e-12))
        to_means = np.where(members.sum(axis=0) > 0, sums / norms, -np.inf)
        moved = to_means.argmax(axis=1)
        if (moved == groups).all():
            break
        groups = moved
    return groups, float(to_means.max(axis=1).sum())
