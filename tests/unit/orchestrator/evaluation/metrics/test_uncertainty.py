"""Clustered means and their intervals, against SciPy and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import norm, t

from orchestrator.evaluation.metrics.uncertainty import (
    UNSCORED,
    Estimate,
    clustered_mean,
    interval_of_difference,
    interval_of_share,
    student_t,
)


def test_clustered_error_by_hand() -> None:
    # m = 2/3; residuals of the clusters 1 - 4/3 and 1 - 2/3; sqrt(2 * 2/9) / 3 = 2/9
    estimate = clustered_mean([1, 0, 1], ["a", "a", "b"])
    assert estimate.value == pytest.approx(2 / 3)
    assert estimate.standard_error == pytest.approx(2 / 9)
    assert (estimate.count, estimate.clusters) == (3, 2)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 6)), min_size=2, max_size=60))
@settings(deadline=None)
def test_clustered_error_is_sandwich_estimator_of_constant(rows: list[tuple[int, int]]) -> None:
    values, groups = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    assume(len(set(groups)) > 1)
    design = np.ones((len(values), 1))
    bread = np.linalg.inv(design.T @ design)
    residuals = values - values.mean()
    scores = np.array([design[groups == group].T @ residuals[groups == group] for group in np.unique(groups)])
    variance = bread @ (scores.T @ scores) @ bread * len(scores) / (len(scores) - 1)
    estimate = clustered_mean(values.tolist(), [str(group) for group in groups])
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.standard_error == pytest.approx(math.sqrt(variance[0, 0]), abs=1e-12)


def test_clustered_error_of_single_values_is_textbook_one() -> None:
    values = [0.0, 1.0, 1.0, 0.0, 1.0]
    estimate = clustered_mean(values, list("abcde"))
    assert estimate.standard_error == pytest.approx(np.std(values, ddof=1) / math.sqrt(5))


def test_one_cluster_has_mean_without_error_and_no_values_are_unscored() -> None:
    assert clustered_mean([1, 0], ["a", "a"]) == Estimate(0.5, None, 2, 1)
    assert clustered_mean([], []) == UNSCORED == Estimate(None, None, 0, 0)


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
    estimate = clustered_mean([0.1, 0.2, 0.3] * 7, [str(index // 3) for index in range(21)])
    assert estimate.standard_error == 0
    assert estimate.high is not None
    assert estimate.high > 0.3


def test_interval_has_nominal_coverage() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        chance = np.clip(random.normal(0.6, 0.15, 25), 0, 1)
        values = [float(random.random() < probability) for probability in chance for _ in range(4)]
        estimate = clustered_mean(values, [str(index) for index in range(25) for _ in range(4)])
        assert estimate.low is not None
        assert estimate.high is not None
        covered += estimate.low <= 0.6 <= estimate.high
    assert 0.92 <= covered / 1000 <= 0.97
