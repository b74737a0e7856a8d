"""Queries, and the selection of matches."""

from __future__ import annotations

import numpy as np
import pytest

from infra.contract.adapter import Adapter
from infra.contract.errors import InvalidArgumentError
from infra.contract.retrieval import RetrievalOptions, RetrievalStrategy, SelectionReason, Weighting
from retrieval_service.catalogue.points import AdapterFilter, ScoredAdapter
from retrieval_service.retriever import Query, select
from retrieval_service.settings import RetrievalDefaults


def found(*values: float) -> list[ScoredAdapter]:
    return [ScoredAdapter(Adapter(f"a{i}", "base", ""), value, 10 * value) for i, value in enumerate(values)]


def test_matches_below_minimum_are_dropped_before_weighting() -> None:
    query = Query(AdapterFilter(), 3, Weighting.UNIFORM, 0.2, min_similarity=0.5)
    selection = select(found(0.9, 0.5, 0.49), query)
    assert [(match.adapter.adapter_id, match.weight) for match in selection.matches] == [("a0", 0.5), ("a1", 0.5)]
    assert select(found(0.4), query).matches == ()


def test_defaults_fill_in_unset_options() -> None:
    defaults = RetrievalDefaults(top_k=5, weighting=Weighting.UNIFORM, temperature=0.7, min_similarity=0.1)
    query = Query.of(RetrievalOptions(), defaults)
    assert (query.top_k, query.weighting, query.temperature, query.min_similarity) == (5, Weighting.UNIFORM, 0.7, 0.1)
    query = Query.of(
        RetrievalOptions(top_k=1, weighting=Weighting.SOFTMAX, temperature=0.3, min_similarity=-1, kind="app"), defaults
    )
    assert (query.top_k, query.weighting, query.temperature, query.min_similarity) == (1, Weighting.SOFTMAX, 0.3, -1)
    assert query.adapter_filter == AdapterFilter(kind="app")


def test_top_k_over_limit_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="top_k: must be at most 64"):
        Query.of(RetrievalOptions(top_k=65), RetrievalDefaults())


def test_strategy_of_request_overrides_default() -> None:
    defaults = RetrievalDefaults(strategy=RetrievalStrategy.CALIBRATED)
    assert Query.of(RetrievalOptions(), defaults).strategy is RetrievalStrategy.CALIBRATED
    asked = Query.of(RetrievalOptions(strategy=RetrievalStrategy.NEAREST_EXAMPLES), defaults)
    assert asked.strategy is RetrievalStrategy.NEAREST_EXAMPLES


def test_weights_of_probability_come_from_log_weights() -> None:
    query = Query(AdapterFilter(), 3, Weighting.PROBABILITY, 0.2, min_similarity=-1)
    weights = [match.weight for match in select(found(0.9, 0.8), query).matches]
    assert weights == pytest.approx([1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))])


@pytest.mark.parametrize(
    ("strategy", "least", "is_kept"),
    [
        (RetrievalStrategy.TWO_COVARIANCE, None, True),
        (RetrievalStrategy.TWO_COVARIANCE, 8.9, True),
        (RetrievalStrategy.TWO_COVARIANCE, 9.1, False),
        (RetrievalStrategy.CENTROID, 9.1, True),
    ],
)
def test_nothing_fits_below_minimum_log_odds(strategy: RetrievalStrategy, least: float | None, is_kept: bool) -> None:
    query = Query(AdapterFilter(), 3, Weighting.UNIFORM, 0.2, -1, strategy, least)
    selection = select(found(0.9, 0.8), query)
    assert bool(selection.matches) == is_kept
    assert selection.reason is (None if is_kept else SelectionReason.NOTHING_FITS)
    tells = strategy is RetrievalStrategy.TWO_COVARIANCE
    assert selection.log_odds == (pytest.approx(9.0) if tells else None)
