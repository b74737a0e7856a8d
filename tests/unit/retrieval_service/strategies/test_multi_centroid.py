"""Exemplars found by k-means."""

from __future__ import annotations

import numpy as np
import pytest

from retrieval_service.embedders.base import normalise
from retrieval_service.strategies.multi_centroid import find_exemplars


def queries(dim: int, count: int = 9, seed: int = 5) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return normalise(np.random.default_rng(seed).normal(size=(count, dim)))


def test_k_means_finds_groups_deterministically() -> None:
    generator = np.random.default_rng(1)
    centres = normalise(np.eye(8)[:3])
    vectors = normalise(np.repeat(centres, 7, axis=0) + 0.05 * generator.normal(size=(21, 8)))
    shuffled = vectors[generator.permutation(21)]
    for given_vectors in (vectors, shuffled):
        found = find_exemplars(given_vectors)
        assert found.shape == (3, 8)
        assert (found @ centres.T).max(axis=1) == pytest.approx([1, 1, 1], abs=0.01)
        assert sorted((found @ centres.T).argmax(axis=1)) == [0, 1, 2]
        np.testing.assert_array_equal(found, find_exemplars(given_vectors))


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (9, 1), (10, 2), (14, 2), (15, 3), (40, 3)])
def test_few_examples_make_few_exemplars(count: int, expected: int) -> None:
    assert len(find_exemplars(queries(8, count))) == expected


def test_equal_examples_make_one_exemplar() -> None:
    np.testing.assert_allclose(find_exemplars(np.repeat(queries(8, 1), 20, axis=0)), queries(8, 1), atol=1e-6)
