"""The published study's similarity, against scikit-learn and by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer

from infra.contract.errors import InvalidArgumentError
from orchestrator.evaluation.metrics.action import ActionMetric
from orchestrator.evaluation.metrics.legacy import LegacyMetric, legacy_similarity

WORDS = st.lists(st.sampled_from(["Click", "on", "button", "7", "é", "Äpfel", "der_die", "7:00", "\n", "a1", "CLICK"]))
TEXTS = st.one_of(WORDS.map(" ".join), st.text(max_size=20))


@given(TEXTS, TEXTS)
@settings(deadline=None)
def test_legacy_similarity_matches_scikit_learn(truth: str, answer: str) -> None:
    try:
        matrix = TfidfVectorizer().fit_transform([truth, answer])
    except ValueError:  # neither string has a token
        assert legacy_similarity(truth, answer) == float(truth.strip() == answer.strip())
    else:
        assert legacy_similarity(truth, answer) == pytest.approx((matrix[0] @ matrix[1].T).toarray()[0, 0], abs=1e-12)


def test_legacy_similarity_by_hand() -> None:
    # "scroll" is in both (weight 1), "up" and "down" in one each (weight ln(3/2) + 1).
    rare = math.log(1.5) + 1
    assert legacy_similarity("Scroll up", "Scroll down") == pytest.approx(1 / (1 + rare**2))


def test_labels_of_one_character_do_not_count_for_legacy() -> None:
    metric = LegacyMetric()
    assert metric.accepts('Click on button with the text "1"', 'Click on button with the text "0"')
    assert not ActionMetric().accepts('Click on button with the text "1"', 'Click on button with the text "0"')


def test_legacy_demands_strictly_more_than_threshold() -> None:
    # 3 * 1 + 1 * 3 over (10^0.5)^2 is 0.6 exactly.
    truth, answer = "aa aa aa bb", "aa bb bb bb"
    assert legacy_similarity(truth, answer) == pytest.approx(0.6)
    assert not LegacyMetric(legacy_similarity(truth, answer)).accepts(truth, answer)
    assert LegacyMetric(legacy_similarity(truth, answer) - 1e-9).accepts(truth, answer)


@pytest.mark.parametrize(
    ("truth", "answer", "similarity"),
    [("7", "7", 1.0), (" 7", "7\n", 1.0), ("7", "8", 0.0), ("", "", 1.0), ("7", "seven", 0.0), ("seven", "", 0.0)],
)
def test_texts_without_tokens_match_only_equal_texts(truth: str, answer: str, similarity: float) -> None:
    assert legacy_similarity(truth, answer) == similarity


@pytest.mark.parametrize("threshold", [-0.1, 1.1, 60, math.nan])
def test_threshold_outside_0_to_1_is_refused(threshold: float) -> None:
    with pytest.raises(InvalidArgumentError, match="threshold"):
        LegacyMetric(threshold)
