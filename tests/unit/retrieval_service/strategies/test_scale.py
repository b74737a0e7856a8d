"""The common scale of similarities."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.contract.retrieval import RetrievalStrategy
from retrieval_service.embedders.base import normalise
from retrieval_service.strategies.centroid import Centroid
from retrieval_service.strategies.examples import ExampleSet
from retrieval_service.strategies.nearest_examples import NearestExamples
from retrieval_service.strategies.scale import Scale, Similarities
from tests.support.harness.example_sets import clouds


def queries(dim: int, count: int = 9, seed: int = 5) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return normalise(np.random.default_rng(seed).normal(size=(count, dim)))


@pytest.mark.parametrize("strategy", [name for name in RetrievalStrategy if name != "two_covariance"])
def test_adapters_with_only_mean_are_compared_by_centroid(strategy: RetrievalStrategy) -> None:
    examples = clouds(dict.fromkeys("abcd", 1))
    expected = queries(16) @ examples.vectors.T
    np.testing.assert_allclose(Similarities(strategy, examples).of(queries(16)), expected, atol=1e-6)


def test_adapter_with_only_mean_has_no_advantage() -> None:
    """Means lie nearer to everything than examples do; on one scale that does not make them win."""
    full = clouds({f"a{index}": 20 for index in range(10)}, noise=1.2, seed=8)
    half = {name: full.vectors[full.rows_of(index)] for index, name in enumerate(full.ids)}
    stored = {name: vectors[:10] for name, vectors in half.items()}
    for name in full.ids[::2]:
        stored[name] = stored[name].mean(axis=0, keepdims=True)
    known = ExampleSet.of(stored)
    asked = np.concatenate([half[name][10:] for name in full.ids])
    truth = np.repeat(np.arange(10), 10)
    scaled = Similarities(RetrievalStrategy.NEAREST_EXAMPLES, known).of(asked).argmax(axis=1)
    raw = NearestExamples(known).cosines(asked).argmax(axis=1)
    assert abs((scaled % 2 == 0).mean() - 0.5) < abs((raw % 2 == 0).mean() - 0.5)
    assert (scaled == truth).mean() >= (raw == truth).mean()


@pytest.mark.parametrize("strategy", RetrievalStrategy)
def test_mean_similarity_of_right_and_wrong_pairs_is_equal_under_all_strategies(strategy: RetrievalStrategy) -> None:
    examples = clouds({f"a{index}": 15 for index in range(6)}, dim=32)
    rows = examples.testable()
    right = np.zeros((len(rows), 6), bool)
    right[np.arange(len(rows)), examples.owners[rows]] = True
    found = Similarities(strategy, examples).left_out(rows)
    plain = Centroid(examples).left_out(rows)
    assert found[right].mean() == pytest.approx(plain[right].mean(), abs=0.02)
    assert found[~right].mean() == pytest.approx(plain[~right].mean(), abs=0.02)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=9), st.tuples(*[st.floats(-0.99, 0.99)] * 4))
def test_scale_keeps_order(cosines: list[float], points: tuple[float, float, float, float]) -> None:
    scale = Scale.through((points[0], points[1]), (points[2], points[3]))
    mapped = scale.apply(np.sort(cosines))
    assert (np.diff(mapped) >= -1e-12).all()  # interpolation rounds; similarities closer than 2e-6 are ties anyway
    assert scale.apply(np.array([-1.0, 1.0])).tolist() == [-1, 1]


def test_scale_is_identity_unless_right_is_above_wrong() -> None:
    assert Scale.through((0.5, 0.4), (0.1, 0.2)) == Scale()
    assert Scale.through((0.1, 0.2), (0.5, 0.5)) == Scale()
    assert Scale.through((0.1, 0.3), (0.5, 0.9)).apply(np.array([0.2])) == pytest.approx([0.7])
