"""Clustered means and their intervals, against SciPy and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm, t

from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.evaluation.metrics.uncertainty import (
    clustered_mean,
    interval_of_difference,
    interval_of_share,
    student_t,
)
from orchestrator.evaluation.spec import EvaluatedStrategy

RIGHT, WRONG = "Scroll up", "Scroll down"
SELECTION = EvaluatedStrategy(AnswerStrategy.SELECTION)
MIXTURE = EvaluatedStrategy(AnswerStrategy.MIXTURE)


@pytest.mark.parametrize("degrees", [1, 2, 3, 5, 10, 30, 1000])
def test_students_t_matches_scipy(degrees: int) -> None:
    assert student_t(degrees) == pytest.approx(t.ppf(0.975, degrees), rel=2e-3)


def test_share_interval_is_clipped_and_never_degenerate() -> None:
    assert interval_of_share(0.9, 0.1, 4) == (pytest.approx(0.9 - 0.1 * t.ppf(0.975, 3), rel=1e-2), 1.0)
    low, high = interval_of_share(1.0, 0.0, 10)
    assert (low, high) == (pytest.approx(0.722, abs=1e-3), 1.0)
    assert interval_of_share(0.0, 0.0, 10) == (0.0, pytest.approx(1 - low))


@pytest.mark.parametrize(("clusters", "share"), [(2, 0.5), (10, 0.5), (10, 1 / 3), (500, 0.9)])
def test_share_without_spread_has_wilsons_interval(clusters: int, share: float) -> None:
    low, high = interval_of_share(share, 0.0, clusters)
    for end in (low, high):
        assert abs(end - share) == pytest.approx(norm.ppf(0.975) * (end * (1 - end) / clusters) ** 0.5)


def test_difference_interval_without_spread_is_wide_and_within_scale() -> None:
    low, high = interval_of_difference(0.0, 0.0, 20)
    assert (low, high) == (pytest.approx(-0.161, abs=1e-3), pytest.approx(0.161, abs=1e-3))
    assert interval_of_difference(1.0, 0.0, 20) == (pytest.approx(1 + low), 1.0)
    assert interval_of_difference(-2 / 3, 1 / 3, 3) == (-1.0, pytest.approx(-2 / 3 + t.ppf(0.975, 2) / 3, rel=1e-2))


def test_rounding_noise_is_not_spread() -> None:
    found = clustered_mean([0.1, 0.2, 0.3] * 7, [str(index // 3) for index in range(21)])
    assert found.standard_error == 0
    assert found.high is not None
    assert found.high > 0.3


def test_interval_has_nominal_coverage() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        chance = np.clip(random.normal(0.6, 0.15, 25), 0, 1)
        values = [float(random.random() < probability) for probability in chance for _ in range(4)]
        found = clustered_mean(values, [str(index) for index in range(25) for _ in range(4)])
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.6 <= found.high
    assert 0.92 <= covered / 1000 <= 0.97
