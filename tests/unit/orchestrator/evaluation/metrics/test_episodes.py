"""Shares of correct steps and episodes, by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from orchestrator.evaluation.metrics.action import ActionMetric
from orchestrator.evaluation.metrics.episodes import AnsweredEpisode, score_episodes
from orchestrator.evaluation.metrics.uncertainty import UNSCORED, Estimate

TAP_A, TAP_B = 'Click on button with the text "apple"', 'Click on button with the text "berry"'
OPEN, UP, DONE = "Open App: Clock", "Scroll up", "Check status: successful"
ACTION = ActionMetric()


def episode(
    truths: Sequence[str], answers: Sequence[str | None], cluster: str = "e", dataset: str = "d"
) -> AnsweredEpisode:
    return AnsweredEpisode(dataset, cluster, tuple(truths), tuple(answers))


def test_steps_and_episodes_by_hand() -> None:
    score = score_episodes(
        [
            episode([OPEN, TAP_A, DONE], [OPEN, TAP_A, DONE], "e1"),
            episode([OPEN, TAP_B, DONE], [OPEN, TAP_A, DONE], "e2"),
            episode([TAP_A, DONE], [DONE, TAP_A], "e3"),
        ],
        ACTION,
    )
    assert score.steps.value == pytest.approx(5 / 8)
    # S - m n of the episodes: 9/8, 1/8, -10/8
    assert score.steps.standard_error == pytest.approx(math.sqrt(3 / 2 * (81 + 1 + 100) / 64) / 8)
    assert (score.steps.count, score.steps.clusters) == (8, 3)
    assert score.episodes.value == pytest.approx(1 / 3)
    assert score.episodes.standard_error == pytest.approx(1 / 3)


@pytest.mark.parametrize("answers", [[OPEN], [OPEN, DONE, UP], []])
def test_episode_with_another_number_of_answers_is_wrong(answers: list[str]) -> None:
    score = score_episodes([episode([OPEN, DONE], answers)], ACTION)
    assert score.steps == Estimate(len(answers[:2]) / 2, None, 2, 1)
    assert score.episodes.value == 0


def test_unscored_step_is_in_no_share_and_leaves_episode_unscored() -> None:
    score = score_episodes(
        [episode([OPEN, TAP_A], [OPEN, None], "e1"), episode([OPEN, TAP_B], [OPEN, TAP_B], "e2")], ACTION
    )
    assert (score.steps.value, score.steps.count) == (1, 3)
    assert (score.episodes.value, score.episodes.count) == (1, 1)
    assert score.step_floor == 1
    assert score_episodes([episode([OPEN], [None])], ACTION).steps == UNSCORED


def test_episode_in_two_datasets_is_one_cluster() -> None:
    episodes = [episode([OPEN], [answer], cluster, data) for answer, cluster, data in [
        (OPEN, "e1", "app"), (OPEN, "e1", "category"), (UP, "e2", "app"), (UP, "e2", "category")]]  # fmt: skip
    assert score_episodes(episodes, ACTION).steps.clusters == 2
    # Two values, 1 and 0, each seen twice: the error of two values.
    assert score_episodes(episodes, ACTION).steps.standard_error == pytest.approx(0.5)
