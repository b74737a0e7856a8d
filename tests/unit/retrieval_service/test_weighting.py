"""Weightings, property-tested."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.contract.retrieval import Weighting
from retrieval_service.weighting import clear_best, proportional, softmax, uniform, weigh

similarities = st.lists(st.floats(-1, 1), min_size=1, max_size=20)


temperatures = st.floats(1e-9, 1e9)


@given(similarities, temperatures)
def test_softmax_weights_sum_to_one_and_keep_order(values: list[float], temperature: float) -> None:
    weights = softmax(values, temperature)
    assert math.fsum(weights) == pytest.approx(1)
    assert min(weights) >= 0
    ranked = sorted(zip(values, weights, strict=True))
    assert all(a[1] <= b[1] for a, b in itertools.pairwise(ranked))


def test_softmax_is_softmax_of_similarity_over_temperature() -> None:
    exponentials = [math.exp(s / 0.2) for s in (0.9, 0.5, -0.1)]
    expected = [e / sum(exponentials) for e in exponentials]
    assert softmax([0.9, 0.5, -0.1], 0.2) == pytest.approx(expected)


def test_vanishing_temperature_selects_best_and_splits_ties() -> None:
    assert softmax([0.5, 0.9, 0.9], 1e-300) == [0.0, 0.5, 0.5]


@given(similarities, temperatures)
def test_clear_best_takes_all_weight_or_falls_back_to_softmax(values: list[float], temperature: float) -> None:
    weights, shares = clear_best(values, temperature), softmax(values, temperature)
    if max(shares) >= 0.9:
        assert sorted(weights, reverse=True) == [1.0] + [0.0] * (len(values) - 1)
        assert weights.index(1.0) == shares.index(max(shares))
    else:
        assert weights == shares


def test_clear_margin_between_two_is_temperature_times_log_nine() -> None:
    margin = 0.05 * math.log(9)
    assert clear_best([0.5 + margin + 1e-6, 0.5], 0.05) == [1.0, 0.0]
    assert clear_best([0.5, 0.5 + margin - 1e-6], 0.05)[1] < 0.9


@given(similarities)
def test_proportional_weights_ignore_negative_similarities(values: list[float]) -> None:
    weights = proportional(values)
    total = sum(max(value, 0) for value in values)
    expected = 1.0 if total > 0 else 0.0
    assert math.fsum(weights) == pytest.approx(expected)
    assert all(weight == 0 for value, weight in zip(values, weights, strict=True) if value <= 0)


def test_proportional_weights_are_zero_if_nothing_is_similar() -> None:
    assert proportional([0.0, -0.4]) == [0.0, 0.0]


def test_uniform_is_one_over_k() -> None:
    assert uniform(4) == [0.25] * 4


@pytest.mark.parametrize("weighting", Weighting)
def test_no_matches_have_no_weights(weighting: Weighting) -> None:
    assert weigh([], weighting, 0.2, []) == []
