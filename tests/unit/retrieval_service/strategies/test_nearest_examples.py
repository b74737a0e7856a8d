"""Mean cosine with the nearest examples."""

from __future__ import annotations

import numpy as np

from retrieval_service.embedders.base import normalise
from retrieval_service.strategies.nearest_examples import NearestExamples
from tests.support.harness.example_sets import clouds

UNEVEN = {"a": 1, "b": 2, "c": 3, "d": 7, "e": 12, "f": 16}


def queries(dim: int, count: int = 9, seed: int = 5) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return normalise(np.random.default_rng(seed).normal(size=(count, dim)))


def test_nearest_examples_is_mean_of_three_nearest() -> None:
    examples = clouds(UNEVEN)
    asked = queries(16)
    found = NearestExamples(examples).cosines(asked)
    for index in range(len(examples.ids)):
        cosines = np.sort(asked @ examples.vectors[examples.rows_of(index)].T, axis=1)[:, ::-1]
        np.testing.assert_allclose(found[:, index], cosines[:, :3].mean(axis=1), atol=1e-6)
