"""The order of matches."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_service.strategies.ranking import ranking


def test_ranking_falls_up_to_rounding() -> None:
    similarities = np.array([[0.1, 0.5, 0.5 + 1e-7, 0.5 - 1e-7, 0.9], [-1.0, -1.0, 1.0, 0.0, 0.0]])
    assert ranking(similarities).tolist() == [[4, 1, 2, 3, 0], [2, 3, 4, 0, 1]]
    steps = np.array([[0.0, 1.5e-6, 3e-6, 4.5e-6]])
    assert ranking(steps).tolist() == [[2, 3, 0, 1]]
    assert ranking(np.zeros((2, 0))).shape == (2, 0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=12), st.integers(1, 12))
def test_top_k_is_prefix_of_full_ranking(steps: list[int], top_k: int) -> None:
    similarities = np.array([[step * 0.7e-6 for step in steps], [step * 0.1 for step in steps]])
    order = ranking(similarities)
    assert sorted(order[0]) == list(range(len(steps)))
    np.testing.assert_array_equal(ranking(similarities, top_k), order[:, :top_k])
    assert order[1].tolist() == sorted(range(len(steps)), key=lambda column: (-steps[column], column))
