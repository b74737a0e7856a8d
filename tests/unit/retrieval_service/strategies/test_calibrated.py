"""Whitening by the scatter within adapters."""

from __future__ import annotations

import numpy as np
import pytest

from infra.contract.retrieval import RetrievalStrategy
from retrieval_service.embedders.base import normalise
from retrieval_service.strategies.calibrated import Calibrated
from retrieval_service.strategies.centroid import Centroid
from retrieval_service.strategies.examples import ExampleSet
from retrieval_service.strategies.scale import Similarities
from tests.support.harness.example_sets import clouds

UNEVEN = {"a": 1, "b": 2, "c": 3, "d": 7, "e": 12, "f": 16}


def queries(dim: int, count: int = 9, seed: int = 5) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return normalise(np.random.default_rng(seed).normal(size=(count, dim)))


def test_left_out_examples_of_mixed_kinds_agree_with_refitting() -> None:
    kinds = {"a": "app", "b": "app", "c": "app", "d": "category", "e": "category", "f": "app"}
    examples = clouds(UNEVEN, dim=12, seed=3, kinds=kinds)
    for kind in ("", "app", "category"):
        fitted = Calibrated(examples, kind)
        rows = examples.testable()
        expected = [Calibrated(examples.without(int(row)), kind).cosines(examples.vectors[[row]])[0] for row in rows]
        np.testing.assert_allclose(fitted.left_out(rows), expected, atol=2e-5)


def test_calibrated_is_cosine_in_metric_of_shrunk_covariance() -> None:
    """Against dim x dim matrices written out, with the shrinkage as its paper prints it."""
    examples = clouds({"a": 5, "b": 6, "c": 9}, dim=10)
    parts = [examples.vectors[examples.rows_of(index)].astype(np.float64) for index in range(3)]
    freedom, dim = sum(len(part) - 1 for part in parts), 10
    covariance = sum((part - part.mean(0)).T @ (part - part.mean(0)) for part in parts) / freedom
    trace, squared = np.trace(covariance), np.trace(covariance @ covariance)
    shrinkage = ((1 - 2 / dim) * squared + trace**2) / ((freedom + 1 - 2 / dim) * (squared - trace**2 / dim))
    assert 0 < shrinkage < 1
    metric = np.linalg.inv((1 - shrinkage) * covariance + shrinkage * trace / dim * np.eye(dim))
    means, asked = np.stack([part.mean(0) for part in parts]), queries(dim).astype(np.float64)
    lengths = np.sqrt(np.outer(np.einsum("id,de,ie->i", asked, metric, asked), np.diag(means @ metric @ means.T)))
    expected = asked @ metric @ means.T / lengths
    np.testing.assert_allclose(Calibrated(examples).cosines(queries(dim)), expected, atol=1e-5)


def test_without_scatter_calibrated_equals_cosine() -> None:
    same = ExampleSet.of({name: np.repeat(queries(8, 1, seed), 4, axis=0) for seed, name in enumerate("abc")})
    np.testing.assert_allclose(Calibrated(same).cosines(queries(8)), Centroid(same).cosines(queries(8)), atol=1e-6)


@pytest.mark.parametrize("examples_an_adapter", [2, 3, 5, 20])
def test_calibrated_discounts_noise_common_to_adapters(examples_an_adapter: int) -> None:
    """At least as good as the centroid with few examples, and clearly better with twenty."""
    names = [f"a{index}" for index in range(12)]
    right = {}
    for strategy in (RetrievalStrategy.CENTROID, RetrievalStrategy.CALIBRATED):
        hits = []
        for seed in range(6):
            everything = clouds(dict.fromkeys(names, examples_an_adapter + 20), dim=64, noise=1.5, seed=seed)
            kept = np.concatenate([everything.rows_of(index)[:examples_an_adapter] for index in range(12)])
            asked = np.concatenate([everything.rows_of(index)[examples_an_adapter:] for index in range(12)])
            known = ExampleSet(everything.ids, everything.kinds, everything.vectors[kept], everything.owners[kept])
            found = Similarities(strategy, known).of(everything.vectors[asked]).argmax(axis=1)
            hits.append((found == everything.owners[asked]).mean())
        right[strategy] = float(np.mean(hits))
    gained = right[RetrievalStrategy.CALIBRATED] - right[RetrievalStrategy.CENTROID]
    assert gained >= (0.03 if examples_an_adapter == 20 else 0)
