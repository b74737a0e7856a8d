"""Recognising requests of adapters that are not registered."""

from __future__ import annotations

import numpy as np
import pytest

from infra.contract.retrieval import RetrievalStrategy
from retrieval_service.evaluation.open_set import auroc, open_set_auroc
from tests.support.harness.example_sets import clouds


def test_auroc_counts_pairs_and_half_of_ties() -> None:
    generator = np.random.default_rng(0)
    positive, negative = generator.integers(0, 5, 30).astype(float), generator.integers(0, 4, 20).astype(float)
    pairs = positive[:, None] - negative
    assert auroc(positive, negative) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())


@pytest.mark.parametrize("strategy", RetrievalStrategy)
def test_distinct_adapters_are_recognised_as_unknown(strategy: RetrievalStrategy) -> None:
    share = open_set_auroc(strategy, clouds(dict.fromkeys("abcdef", 8), noise=0.2, dim=24))
    assert share is not None
    assert share > 0.8


def test_two_adapters_are_too_few() -> None:
    assert open_set_auroc(RetrievalStrategy.CENTROID, clouds({"a": 3, "b": 3})) is None
