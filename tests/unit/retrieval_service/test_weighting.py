"""Similarities -> weights."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.contract.adapter import Adapter
from infra.contract.errors import InvalidArgumentError
from infra.contract.retrieval import RetrievalOptions, RetrievalStrategy, Weighting
from retrieval_service.catalogue.points import AdapterFilter, ScoredAdapter
from retrieval_service.retriever import Query, RetrievalDefaults, select
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


def test_vanishing_temperature_takes_best_alone_and_shares_among_equals() -> None:
    assert softmax([0.5, 0.9, 0.9], 1e-300) == [0.0, 0.5, 0.5]


@given(similarities, temperatures)
def test_clear_best_takes_all_and_others_share_by_softmax(values: list[float], temperature: float) -> None:
    weights, shares = clear_best(values, temperature), softmax(values, temperature)
    if max(shares) >= 0.9:
        assert sorted(weights, reverse=True) == [1.0] + [0.0] * (len(values) - 1)
        assert weights.index(1.0) == shares.index(max(shares))
    else:
        assert weights == shares


def test_of_two_margin_that_is_clear_is_temperature_times_logarithm_of_nine() -> None:
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


def test_when_nothing_resembles_prompt_proportional_weights_are_all_zero() -> None:
    assert proportional([0.0, -0.4]) == [0.0, 0.0]


def test_uniform_is_one_over_k() -> None:
    assert uniform(4) == [0.25] * 4


@pytest.mark.parametrize("weighting", Weighting)
def test_no_match_has_no_weight(weighting: Weighting) -> None:
    assert weigh([], weighting, 0.2) == []


def found(*values: float) -> list[ScoredAdapter]:
    return [ScoredAdapter(Adapter(f"a{i}", "base", ""), value) for i, value in enumerate(values)]


def test_matches_below_minimum_are_dropped_before_weights_are_given() -> None:
    query = Query(AdapterFilter(), 3, Weighting.UNIFORM, 0.2, min_similarity=0.5)
    selection = select(found(0.9, 0.5, 0.49), query)
    assert [(match.adapter.adapter_id, match.weight) for match in selection.matches] == [("a0", 0.5), ("a1", 0.5)]
    assert select(found(0.4), query).matches == ()


def test_defaults_fill_in_what_request_leaves_open() -> None:
    defaults = RetrievalDefaults(top_k=5, weighting=Weighting.UNIFORM, temperature=0.7, min_similarity=0.1)
    query = defaults.query(RetrievalOptions())
    assert (query.top_k, query.weighting, query.temperature, query.min_similarity) == (5, Weighting.UNIFORM, 0.7, 0.1)
    query = defaults.query(
        RetrievalOptions(top_k=1, weighting=Weighting.SOFTMAX, temperature=0.3, min_similarity=-1, kind="app")
    )
    assert (query.top_k, query.weighting, query.temperature, query.min_similarity) == (1, Weighting.SOFTMAX, 0.3, -1)
    assert query.wanted == AdapterFilter(kind="app")


def test_top_k_over_limit_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="top_k: must be at most 64"):
        RetrievalDefaults().query(RetrievalOptions(top_k=65))


def test_strategy_of_request_goes_over_default() -> None:
    defaults = RetrievalDefaults(strategy=RetrievalStrategy.CALIBRATED)
    assert defaults.query(RetrievalOptions()).strategy is RetrievalStrategy.CALIBRATED
    asked = defaults.query(RetrievalOptions(strategy=RetrievalStrategy.NEAREST_EXAMPLES))
    assert asked.strategy is RetrievalStrategy.NEAREST_EXAMPLES
