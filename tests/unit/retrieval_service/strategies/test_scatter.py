"""Residuals, and the kinds whose scatter is discounted."""

from __future__ import annotations

import numpy as np
import pytest

from retrieval_service.embedders.base import normalise
from retrieval_service.strategies.calibrated import Calibrated
from retrieval_service.strategies.centroid import Centroid
from retrieval_service.strategies.examples import ExampleSet
from retrieval_service.strategies.scatter import FITTED_EXAMPLES, nested_kinds, residuals, scatters
from tests.support.harness.example_sets import clouds


def queries(dim: int, count: int = 9, seed: int = 5) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return normalise(np.random.default_rng(seed).normal(size=(count, dim)))


def categories() -> ExampleSet:
    """Six apps in two directions each of noise, and two categories of three apps."""
    apps = clouds({f"app{index}": 10 for index in range(6)}, dim=24, noise=0.4)
    arrays = {one: apps.vectors[apps.rows_of(index)] for index, one in enumerate(apps.ids)}
    for index in range(2):
        arrays[f"category{index}"] = np.concatenate([arrays[f"app{3 * index + one}"][:5] for one in range(3)])
    return ExampleSet.of(arrays, {name: name.rstrip("0123456789") for name in arrays})


def test_differences_between_apps_of_category_count_when_apps_are_told_apart() -> None:
    examples = categories()
    found = scatters(examples)
    assert found["category"].width > found["app"].width
    assert nested_kinds(found, "app") == nested_kinds(found, "") == nested_kinds(found, "unknown") == {"app"}
    assert nested_kinds(found, "category") == {"app", "category"}


def test_kind_with_few_examples_does_not_decide_discounting() -> None:
    generous = clouds({"a": 20, "b": 20, "twin": 2}, kinds={"a": "app", "b": "app", "twin": "odd"})
    arrays = {one: generous.vectors[generous.rows_of(index)] for index, one in enumerate(generous.ids)}
    arrays["twin"] = arrays["twin"][:1].repeat(2, axis=0)
    examples = ExampleSet.of(arrays, dict(zip(generous.ids, generous.kinds, strict=True)))
    assert nested_kinds(scatters(examples), "") == {"app", "odd"}


def test_without_deciding_kind_all_scatter_is_discounted() -> None:
    counts = {f"a{index}": 4 for index in range(12)} | {"single": 1}
    kinds = {name: name for name in counts}
    found = scatters(clouds(counts, kinds=kinds))
    assert nested_kinds(found, "") == nested_kinds(found, "a3") == kinds.keys() - {"single"}
    queries = clouds({"query": 5}, seed=7).vectors
    mixed, plain = clouds(counts, kinds=kinds), clouds(counts)
    np.testing.assert_allclose(Calibrated(mixed).cosines(queries), Calibrated(plain).cosines(queries), atol=1e-6)
    assert not np.allclose(Calibrated(mixed).cosines(queries), Centroid(mixed).cosines(queries), atol=1e-3)


def test_scatter_is_sum_of_squares_within_adapters() -> None:
    examples = categories()
    for kind, found in scatters(examples).items():
        parts = [
            examples.vectors[examples.rows_of(index)].astype(np.float64)
            for index, one in enumerate(examples.kinds)
            if one == kind
        ]
        assert found.freedom == sum(len(part) - 1 for part in parts)
        assert found.squares == pytest.approx(sum(((part - part.mean(0)) ** 2).sum() for part in parts), rel=1e-5)


def test_number_of_fitted_examples_is_bounded() -> None:
    examples = clouds({f"a{index}": 20 for index in range(1000)}, dim=48)
    found = residuals(examples, frozenset({""}))
    assert len(found.vectors) <= FITTED_EXAMPLES
    assert found.freedom == len(found.vectors) - len(np.unique(examples.owners[found.positions >= 0]))
    row = int(np.flatnonzero(found.positions >= 0)[7])
    mean = examples.vectors[examples.rows_of(int(examples.owners[row]))[: found.counts[found.positions[row]]]].mean(
        axis=0
    )
    np.testing.assert_allclose(found.vectors[found.positions[row]], examples.vectors[row] - mean, atol=1e-6)
    fitted = Calibrated(examples)
    assert (fitted.cosines(examples.vectors).argmax(axis=1) == examples.owners).mean() > 0.9
    assert fitted.left_out(examples.testable(20)).shape == (20, 1000)
