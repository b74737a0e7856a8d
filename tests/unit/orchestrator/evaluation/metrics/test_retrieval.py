"""Scores and confusion counts of retrieval, by hand."""

from __future__ import annotations

import pytest

from orchestrator.evaluation.metrics.retrieval import RankedAdapters, confusion, score_retrieval
from orchestrator.evaluation.metrics.uncertainty import UNSCORED


def test_retrieval_by_hand() -> None:
    rankings = [("a", "b", "c"), ("b", "a", "c"), ("b", "c", "a"), ("b", "c", "d", "a"), ()]
    score = score_retrieval(
        [RankedAdapters(str(index), "a", ranking) for index, ranking in enumerate(rankings)], top_k=4
    )
    assert score.at_1.value == pytest.approx(1 / 5)
    assert score.at_3.value == pytest.approx(3 / 5)
    assert score.mean_reciprocal_rank.value == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4 + 0) / 5)
    assert score.at_1.clusters == 5


def test_share_at_three_is_unscored_with_smaller_top_k() -> None:
    score = score_retrieval([RankedAdapters("e", "a", ("a", "b"))], top_k=2)
    assert score.at_3 == UNSCORED
    assert score.at_1.value == 1
    assert score_retrieval([RankedAdapters("e", "a", ("a", "b"))], top_k=None).at_3 == UNSCORED
    assert score_retrieval([RankedAdapters("e", "a", ("c", "b", "a"))], top_k=None).at_3.value == 1
    assert score_retrieval([], top_k=None).at_1 == UNSCORED


def test_confusion_counts_what_came_first() -> None:
    ranked = [
        RankedAdapters("a", "clock", ("clock", "mail")),
        RankedAdapters("b", "clock", ("mail",)),
        RankedAdapters("c", "clock", ("mail",)),
        RankedAdapters("d", "mail", ()),
    ]
    assert confusion(ranked) == {"clock": {"clock": 1, "mail": 2}, "mail": {"(none)": 1}}
