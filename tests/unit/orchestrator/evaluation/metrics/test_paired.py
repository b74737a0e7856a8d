"""Paired differences."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.evaluation.metrics.paired import QuestionScore, paired_difference
from orchestrator.evaluation.metrics.uncertainty import UNSCORED


def test_paired_difference_covers_common_questions_with_less_spread() -> None:
    first = {key: QuestionScore(f"e{key // 2}", float(key % 3 > 0)) for key in range(20)}
    second = {key: QuestionScore(f"e{key // 2}", float(key % 3 > 1)) for key in range(1, 22)}
    difference = paired_difference(first, second)
    values = [first[key].score - second[key].score for key in range(1, 20)]
    assert (difference.value, difference.count, difference.clusters) == (pytest.approx(np.mean(values)), 19, 10)
    same = paired_difference(first, first)
    assert same.low is not None
    assert (same.value, same.standard_error, same.low < 0) == (0, 0, True)
    assert paired_difference(first, {}) == UNSCORED
