"""The two-covariance model against its formulas, written out with dim x dim matrices."""

from __future__ import annotations

import numpy as np
import pytest

from infra.contract.retrieval import RetrievalStrategy
from retrieval_service.embedders.base import normalise
from retrieval_service.strategies.examples import ExampleSet
from retrieval_service.strategies.scale import Similarities
from retrieval_service.strategies.two_covariance import Gauge, TwoCovariance
from retrieval_service.strategies.variances import Variances, variances_of
from tests.support.harness.example_sets import clouds

UNEVEN = {"a": 1, "b": 2, "c": 3, "d": 7, "e": 12, "f": 16}


def test_log_likelihoods_are_those_of_the_model() -> None:
    examples = clouds({"a": 5, "b": 6, "c": 9}, dim=10)
    fitted = TwoCovariance(examples)
    parts = [examples.vectors[examples.rows_of(index)].astype(np.float64) for index in range(3)]
    scatter = sum((part - part.mean(0)).T @ (part - part.mean(0)) for part in parts)
    freedom = sum(len(part) - 1 for part in parts)
    covariance = scatter / freedom
    trace, squared = np.trace(covariance), np.trace(covariance @ covariance)
    shrinkage = ((1 - 2 / 10) * squared + trace**2) / ((freedom + 1 - 2 / 10) * (squared - trace**2 / 10))
    ridge = max(shrinkage / (1 - shrinkage), 1.0) * np.trace(scatter) / 10
    metric = ridge * np.linalg.inv(scatter + ridge * np.eye(10))
    counts, means = np.array([5, 6, 9]), np.stack([part.mean(0) for part in parts])
    centre = means.mean(0)
    within = np.trace(metric @ covariance)
    offsets = means - centre
    between = np.einsum("id,de,ie->", offsets, metric, offsets) / 2 - within * (1 / counts).mean()
    phi = between / within
    trust, spread = counts * phi / (counts * phi + 1), 1 + phi / (counts * phi + 1)
    templates = centre + trust[:, None] * offsets
    asked = normalise(np.random.default_rng(4).normal(size=(7, 10))).astype(np.float64)
    to_template = asked[:, None] - templates
    distances = np.einsum("qcd,de,qce->qc", to_template, metric, to_template)
    to_centre = np.einsum("qd,de,qe->q", asked - centre, metric, asked - centre)
    k = fitted.gauge.dimensions
    found = fitted.log_likelihoods(asked.astype(np.float32))
    known = -k / 2 * (distances / (within * spread) + np.log(spread))
    unknown = -k / 2 * (to_centre / (within * (1 + phi)) + np.log(1 + phi))
    np.testing.assert_allclose(found.known, known, rtol=1e-4)
    np.testing.assert_allclose(found.unknown, unknown, rtol=1e-4)


@pytest.mark.parametrize("kinds", [None, {"a": "app", "b": "app", "c": "app", "d": "x", "e": "x", "f": "app"}])
def test_left_out_examples_agree_with_refitting(kinds: dict[str, str] | None) -> None:
    examples = clouds(UNEVEN, dim=12, seed=3, kinds=kinds)
    fitted = TwoCovariance(examples)
    rows = examples.testable()
    found = fitted.left_out_log_likelihoods(rows)
    for index, row in enumerate(rows):
        alone = TwoCovariance(examples.without(int(row)), gauge=fitted.gauge)
        expected = alone.log_likelihoods(examples.vectors[[row]])
        np.testing.assert_allclose(found.known[index], expected.known[0], rtol=1e-5)
        np.testing.assert_allclose(found.unknown[index], expected.unknown[0], rtol=1e-5)


def test_adapters_with_few_examples_are_found_beside_those_with_many() -> None:
    generator = np.random.default_rng(6)
    centres = 3 + 0.5 * generator.normal(size=(12, 64))
    rows = [(centre + 0.8 * generator.normal(size=(40, 64))).astype(np.float32) for centre in centres]
    stored = ExampleSet.of({f"a{index:02}": own[: 2 if index % 2 else 20] for index, own in enumerate(rows)})
    asked, truth = normalise(np.concatenate([own[20:] for own in rows])), np.repeat(np.arange(12), 20)
    found = {}
    for strategy in (RetrievalStrategy.CENTROID, RetrievalStrategy.CALIBRATED, RetrievalStrategy.TWO_COVARIANCE):
        hits = Similarities(strategy, stored).scores(asked).log_weights.argmax(axis=1) == truth
        found[strategy] = float(hits[truth % 2 == 1].mean())
    assert found.pop(RetrievalStrategy.TWO_COVARIANCE) > max(found.values()) + 0.2


def test_requests_of_removed_adapter_have_lower_log_odds() -> None:
    full = clouds({f"a{index}": 20 for index in range(9)}, dim=32, seed=7)
    rest = full.without_adapter(4)
    fitted = TwoCovariance(rest)
    unknown = fitted.log_likelihoods(full.vectors[full.rows_of(4)]).log_odds.max(axis=1)
    known = fitted.left_out_log_likelihoods(rest.testable()).log_odds.max(axis=1)
    assert np.median(unknown) < np.median(known)


def test_weights_are_probabilities_of_the_right_adapter() -> None:
    full = clouds({f"a{index}": 60 for index in range(8)}, noise=1.5, dim=24, seed=9)
    parts = [full.rows_of(index) for index in range(8)]
    stored = ExampleSet.of({name: full.vectors[rows[:20]] for name, rows in zip(full.ids, parts, strict=True)})
    asked = full.vectors[np.concatenate([rows[20:] for rows in parts])]
    truth = np.repeat(np.arange(8), 40)
    log_weights = TwoCovariance(stored).log_likelihoods(asked).known
    weights = np.exp(log_weights - log_weights.max(axis=1, keepdims=True))
    best = (weights / weights.sum(axis=1, keepdims=True)).max(axis=1)
    assert best.mean() == pytest.approx((log_weights.argmax(axis=1) == truth).mean(), abs=0.06)


def test_without_examples_to_leave_out_weights_follow_cosines() -> None:
    one_each = clouds(dict.fromkeys("abcd", 1))
    fitted = TwoCovariance(one_each)
    asked = normalise(np.random.default_rng(1).normal(size=(5, 16)))
    order = np.argsort(fitted.log_likelihoods(asked).known, axis=1)
    centred = one_each.vectors - one_each.vectors.mean(axis=0)
    assert np.isfinite(fitted.log_likelihoods(asked).known).all()
    distances = ((asked[:, None] - one_each.vectors.mean(axis=0) - 0.5 * centred) ** 2).sum(axis=2)
    np.testing.assert_array_equal(order, np.argsort(-distances, axis=1))


@pytest.mark.parametrize("examples", [ExampleSet.of({"a": np.eye(3, dtype=np.float32)}), clouds({"a": 2, "b": 1})])
def test_tiny_catalogues_are_finite(examples: ExampleSet) -> None:
    found = TwoCovariance(examples).log_likelihoods(examples.vectors)
    assert np.isfinite(found.known).all()
    assert np.isfinite(found.unknown).all()


def test_variances_are_bounded_where_moments_fail() -> None:
    counts = np.array([1, 1, 1])
    assert variances_of(0.0, 3.0, counts) == Variances(1.5, 1.0)
    assert variances_of(1.0, 0.1, counts) == Variances(1.0, 1e-3)
    assert variances_of(1.0, 0.1, counts[:1]) == Variances(1.0, 1.0)
    assert Gauge().dimensions == 1
