"""Properties that hold for every strategy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.contract.retrieval import RetrievalStrategy
from retrieval_service.embedders.base import normalise
from retrieval_service.strategies.calibrated import Calibrated
from retrieval_service.strategies.centroid import Centroid
from retrieval_service.strategies.examples import ExampleSet, Float64Array
from retrieval_service.strategies.multi_centroid import MultiCentroid
from retrieval_service.strategies.nearest_examples import NearestExamples
from retrieval_service.strategies.ranking import ranking
from retrieval_service.strategies.scale import FittedStrategy, Similarities
from tests.support.harness.example_sets import clouds

FITTED: list[type[FittedStrategy]] = [Centroid, MultiCentroid, NearestExamples, Calibrated]


UNEVEN = {"a": 1, "b": 2, "c": 3, "d": 7, "e": 12, "f": 16}


def queries(dim: int, count: int = 9, seed: int = 5) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return normalise(np.random.default_rng(seed).normal(size=(count, dim)))


def brute_force(found: FittedStrategy, row: int) -> Float64Array:
    """Fit the strategy again without the example."""
    without = found.examples.without(row)
    refitted: FittedStrategy = type(found)(without)  # type: ignore[call-arg]
    cosines: Float64Array = refitted.cosines(found.examples.vectors[[row]])[0]
    return cosines


@pytest.mark.parametrize("strategy", FITTED)
@pytest.mark.parametrize("dim", [6, 16, 80])
def test_left_out_example_does_not_affect_fit(strategy: type[FittedStrategy], dim: int) -> None:
    examples = clouds(UNEVEN, dim=dim, seed=dim)
    fitted = strategy(examples)  # type: ignore[call-arg]
    rows = examples.testable()
    assert len(rows) == sum(UNEVEN.values()) - 1
    refitted = np.stack([brute_force(fitted, int(row)) for row in rows])
    np.testing.assert_allclose(fitted.left_out(rows), refitted, atol=2e-5)


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(1, 14), min_size=1, max_size=7),
    dim=st.integers(2, 24),
    seed=st.integers(0, 1000),
    strategy=st.sampled_from(RetrievalStrategy),
)
def test_similarities_are_finite_and_independent_of_order_and_batch(
    counts: list[int], dim: int, seed: int, strategy: RetrievalStrategy
) -> None:
    names = {f"a{index}": count for index, count in enumerate(counts)}
    examples = clouds(names, dim=dim, seed=seed)
    asked = queries(dim, 5, seed)
    found = Similarities(strategy, examples).of(asked)
    assert found.shape == (5, len(counts))
    assert np.isfinite(found).all()
    assert (np.abs(found) <= 1).all()
    turned = ExampleSet.of(
        {one: examples.vectors[examples.rows_of(index)] for index, one in reversed(list(enumerate(examples.ids)))}
    )
    assert turned.ids == examples.ids
    np.testing.assert_allclose(Similarities(strategy, turned).of(asked), found, atol=2e-6)
    np.testing.assert_allclose(Similarities(strategy, examples).of(asked[:1]), found[:1], atol=2e-6)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), strategy=st.sampled_from(RetrievalStrategy))
def test_rotation_does_not_change_similarities(seed: int, strategy: RetrievalStrategy) -> None:
    examples = clouds({"a": 4, "b": 11, "c": 6}, dim=12, seed=seed)
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(12, 12)))
    turned = ExampleSet.of(
        {one: examples.vectors[examples.rows_of(index)] @ turn for index, one in enumerate(examples.ids)}
    )
    found = Similarities(strategy, turned).of((queries(12) @ turn).astype(np.float32))
    np.testing.assert_allclose(found, Similarities(strategy, examples).of(queries(12)), atol=1e-4)


@pytest.mark.parametrize("strategy", RetrievalStrategy)
def test_identical_adapters_are_ordered_by_id(strategy: RetrievalStrategy) -> None:
    examples = clouds({f"a{index}": 12 for index in range(9)}, dim=33)
    arrays = {one: examples.vectors[examples.rows_of(index)] for index, one in enumerate(examples.ids)}
    found = Similarities(strategy, ExampleSet.of(arrays | {"zz": arrays["a3"]})).of(queries(33, 100))
    places = ranking(found).argsort(axis=1)
    np.testing.assert_array_equal(places[:, 3] + 1, places[:, -1])


@pytest.mark.parametrize("strategy", RetrievalStrategy)
def test_no_adapters_give_no_similarities(strategy: RetrievalStrategy) -> None:
    empty = ExampleSet((), (), np.zeros((0, 8), np.float32), np.zeros(0, np.int64))
    assert Similarities(strategy, empty).of(queries(8, 3)).shape == (3, 0)
