"""Cosine with the nearest of several means per adapter, found by spherical k-means over its examples."""

from __future__ import annotations

import numpy as np

from retrieval_service.embedders.base import FloatArray, normalise
from retrieval_service.strategies.examples import BoolArray, ExampleSet, Float64Array, IntArray, chunks

MAX_EXEMPLARS = 3
EXAMPLES_PER_EXEMPLAR = 5
_STARTS = 4  # k-means++ starts; the best by summed cosine wins
_MAX_ROUNDS = 25  # bounds a run that alternates between two groupings
_SEED = 20  # fixed, so that every replica finds the same exemplars


class MultiCentroid:
    """Compares with at most three exemplars per adapter, one for every five examples.

    An adapter with fewer than ten examples has one exemplar, its centroid.
    """

    def __init__(self, examples: ExampleSet) -> None:
        self.examples = examples
        exemplars = [find_exemplars(examples.vectors[examples.rows_of(index)]) for index in range(len(examples.ids))]
        counts = np.array([len(means) for means in exemplars], np.int64)
        self._own_scale = counts > 1
        self._starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
        self._exemplars = np.concatenate(exemplars) if exemplars else np.zeros((0, examples.dim), np.float32)

    @property
    def own_scale(self) -> BoolArray:
        """The adapters with more than one exemplar."""
        return self._own_scale

    def cosines(self, queries: FloatArray) -> Float64Array:
        """Return max_e q · e over the exemplars e of each adapter, [queries, adapters]."""
        cosines = np.empty((len(queries), len(self.examples.ids)))
        for part in chunks(len(queries)) if len(self.examples.ids) else ():
            cosines[part] = np.maximum.reduceat(queries[part] @ self._exemplars.T, self._starts, axis=1)
        return cosines

    def left_out(self, rows: IntArray) -> Float64Array:
        """Return the cosines of examples, each with exemplars of its adapter recomputed without it."""
        cosines = self.cosines(self.examples.vectors[rows])
        for index, row in enumerate(rows):
            owner = self.examples.owners[row]
            others = np.setdiff1d(self.examples.rows_of(owner), [row])
            cosines[index, owner] = (find_exemplars(self.examples.vectors[others]) @ self.examples.vectors[row]).max()
        return cosines


def find_exemplars(vectors: FloatArray) -> FloatArray:
    """Return the means, [k, dim] of length 1, that k-means finds in vectors of length 1. Deterministic.

    It takes the best of four k-means++ starts by the sum of cosines. k is a fifth of the vectors, from 1 to 3.
    """
    count = min(MAX_EXEMPLARS, max(1, len(vectors) // EXAMPLES_PER_EXEMPLAR))
    if count == 1:
        return normalise(vectors.mean(axis=0, keepdims=True, dtype=np.float64))
    cosines = np.asarray(vectors @ vectors.T, np.float64)  # k-means needs only these
    generator = np.random.default_rng(_SEED)
    best, highest = np.zeros(len(vectors), np.int64), -np.inf
    for _ in range(_STARTS):
        groups, total = _k_means(cosines, _plus_plus(cosines, count, generator))
        if total > highest + 1e-9:
            best, highest = groups, total
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
    """Return each vector's group and the sum of cosines with the groups' means, given the cosines of all pairs."""
    to_means = cosines[:, chosen]
    groups = to_means.argmax(axis=1)
    for _ in range(_MAX_ROUNDS):
        members = np.eye(len(chosen))[groups]
        sums = cosines @ members
        norms = np.sqrt(np.maximum((members * sums).sum(axis=0), 1e-12))
        to_means = np.where(members.sum(axis=0) > 0, sums / norms, -np.inf)
        moved = to_means.argmax(axis=1)
        if (moved == groups).all():
            break
        groups = moved
    return groups, float(to_means.max(axis=1).sum())
