"""Scores of outcomes, and the outcome of a service's responses."""

from __future__ import annotations

import pytest

from retrieval_service.evaluation.outcomes import Outcome, as_json, compute_scores


def one(truth: str, rank: int | None, first: str, weight: float) -> Outcome:
    return Outcome(truth, rank, (first, "other"), (weight, 1 - weight))


OUTCOMES = [one("a", 1, "a", 0.95), one("a", 2, "b", 0.93), one("b", 4, "a", 0.55), one("c", None, "a", 0.51)]


def test_scores_are_shares_of_prompts() -> None:
    found = compute_scores(OUTCOMES)
    assert (found.at_1, found.at_3, found.at_5) == (0.25, 0.5, 0.75)
    assert found.mrr == pytest.approx((1 + 1 / 2 + 1 / 4) / 4)
    assert found.confusion == {("a", "a"): 1, ("a", "b"): 1, ("b", "a"): 1, ("c", "a"): 1}
    assert found.confused == [("a", "b", 1), ("b", "a", 1), ("c", "a", 1)]


def test_calibration_error_compares_weights_with_share_of_right_matches() -> None:
    found = compute_scores(OUTCOMES)
    assert found.ece == pytest.approx(0.5 * abs(0.94 - 0.5) + 0.5 * abs(0.53 - 0.0))
    assert [(bin_.count, bin_.right) for bin_ in found.bins if bin_.count] == [(2, 0.0), (2, 0.5)]


def test_json_has_confusion_matrix_by_label() -> None:
    content = as_json(compute_scores([*OUTCOMES, Outcome("c", None, (), ())]))
    assert content["confusion"]["labels"] == ["", "a", "b", "c"]
    assert content["confusion"]["counts"] == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 0, 0], [1, 1, 0, 0]]
