"""The best constant template, by hand."""

from __future__ import annotations

import pytest

from orchestrator.evaluation.metrics.action import ActionMetric
from orchestrator.evaluation.metrics.episodes import AnsweredEpisode, score_episodes
from orchestrator.evaluation.metrics.floor import Floor, floor_of
from orchestrator.evaluation.metrics.legacy import LegacyMetric

TAP_A, TAP_B = 'Click on button with the text "apple"', 'Click on button with the text "berry"'
OPEN, UP, DONE = "Open App: Clock", "Scroll up", "Check status: successful"
ACTION = ActionMetric()


def test_floor_takes_most_common_action_at_each_position() -> None:
    truths = [(OPEN, TAP_A, DONE), (OPEN, TAP_B, DONE), (OPEN, TAP_A, UP, DONE), (TAP_A, TAP_A, DONE)]
    # 3 of 4 OPEN, 3 of 4 TAP_A, 3 of 4 DONE, the one DONE at the end; no episode twice.
    assert floor_of(tuple(truths), ACTION) == Floor(10, 13, 1, 4)
    assert floor_of((), ACTION).step_share is None


def test_floor_counts_what_metric_accepts() -> None:
    points = [(f"Click on point ({x},0)",) for x in (0, 40, 80, 500)]
    assert floor_of(tuple(points), ActionMetric(point_tolerance_px=50)) == Floor(3, 4, 3, 4)


def test_empty_label_raises_legacy_floor() -> None:
    labels = ["one two three four", "five six seven", "eight nine ten"]
    truths = [(f'Click on button with the text "{label}"',) for label in labels]
    assert not any(LegacyMetric().accepts(truth, other) for (truth,) in truths for (other,) in truths if truth != other)
    assert floor_of(tuple(truths), LegacyMetric()).correct_steps == 3
    assert floor_of(tuple(truths), ACTION).correct_steps == 1


def test_group_floor_pools_dataset_floors() -> None:
    truths = {"e1": ("x", TAP_A), "e2": ("x", TAP_A), "e3": ("y", UP)}
    by_dataset = [AnsweredEpisode(name, cluster, (truth,), (OPEN,)) for cluster, (name, truth) in truths.items()]
    pooled = [AnsweredEpisode("all", cluster, (truth,), (OPEN,)) for cluster, (_, truth) in truths.items()]
    assert score_episodes(by_dataset, ACTION).step_floor == 1
    assert score_episodes(pooled, ACTION).step_floor == pytest.approx(2 / 3)


def test_floor_covers_only_scored_steps() -> None:
    assert floor_of(((None, TAP_A), (OPEN, TAP_B)), ACTION) == Floor(2, 3, 1, 1)
