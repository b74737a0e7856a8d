"""Intervals of shares: what they cover, and where they do not jump."""

from __future__ import annotations

import numpy as np
import pytest

from retrieval_service.evaluation.intervals import paired_difference, share_interval


@pytest.mark.parametrize("rate", [0.02, 0.2, 0.9])
@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_interval_covers_rate(rate: float, spread: float) -> None:
    """Fourteen clusters of twenty queries, whose rates differ on the logit scale by `spread`."""
    generator = np.random.default_rng(5)
    logits = np.log(rate / (1 - rate)) + spread * generator.normal(size=(1500, 14))
    rates = 1 / (1 + np.exp(-logits))
    expected = rates.mean()
    clusters = np.repeat(np.arange(14), 20).tolist()
    covered = 0
    for drawn in rates[:500]:
        hits = generator.random((14, 20)) < drawn[:, None]
        interval = share_interval(hits.reshape(-1).tolist(), clusters)
        covered += interval.low <= expected <= interval.high
    assert covered / 500 >= 0.90


def test_no_jump_between_no_error_and_one() -> None:
    clusters = [index % 14 for index in range(280)]
    perfect = share_interval([True] * 280, clusters)
    one = share_interval([False] + [True] * 279, clusters)
    assert perfect.high == pytest.approx(1)
    assert 0.97 < one.low < perfect.low < 1


def test_paired_difference_is_clustered() -> None:
    first, second = [0.0] * 8, [1.0] * 4 + [0.0] * 4
    alone = paired_difference(first, second, list(range(8)))
    together = paired_difference(first, second, [0] * 4 + [1] * 4)
    assert alone.mean == together.mean == 0.5
    assert together.interval.high > alone.interval.high
    same = paired_difference(second, second, list(range(8)))
    assert (same.mean, same.interval.low, same.interval.high) == (0, 0, 0)
