"""Which answers are the true action, and the scores of its type and its argument."""

from __future__ import annotations

import pytest

from orchestrator.evaluation.metrics.action import ActionMetric, ActionTypeMetric, score_action_parts
from orchestrator.evaluation.metrics.episodes import AnsweredEpisode, score_episodes

TAP_A, TAP_B = 'Click on button with the text "apple"', 'Click on button with the text "berry"'
DONE = "Check status: successful"


@pytest.mark.parametrize(
    ("truth", "answer", "right"),
    [
        (TAP_A, TAP_A.upper(), True),
        (TAP_A, TAP_B, False),
        (TAP_A, f"{TAP_A}\n", True),
        (TAP_A, f"{TAP_A}\n{DONE}", False),
        (TAP_A, f"{TAP_A}\nbecause I say so", False),
        (TAP_A, "", False),
        ("Click on point (100,100)", "Click on point (140,148)", True),
        ("Click on point (100,100)", "Click on point (150,148)", False),
        ("not of the language", "Not of  the language", True),
    ],
)
def test_answer_is_correct_if_exactly_true_action(truth: str, answer: str, right: bool) -> None:
    assert ActionMetric(point_tolerance_px=62.5).accepts(truth, answer) is right


def test_type_and_argument_are_scored_separately() -> None:
    tap = 'Click on button with the text "{}"'
    episode = AnsweredEpisode(
        "d",
        "e",
        (tap.format("A"), tap.format("A"), "Scroll up", "Wait for response", "Open App: Clock", "nonsense"),
        (tap.format("A\nB"), 'Long_press on button with the text "A"', "Scroll down", "Wait for response", None, "x"),
    )
    parts = score_action_parts([episode])
    assert (parts.action_type.value, parts.action_type.count) == (3 / 4, 4)
    assert (parts.argument.value, parts.argument.count) == (1 / 3, 3)
    assert not ActionTypeMetric().accepts("nonsense", "other nonsense")


def test_step_without_true_action_is_unscored_by_type() -> None:
    episodes = [
        AnsweredEpisode("d", "e1", ("nonsense", "Scroll up"), ("nonsense", "Scroll down")),
        AnsweredEpisode("d", "e2", ("Scroll up",), ("Wait for response",)),
    ]
    score = score_episodes(episodes, ActionTypeMetric())
    assert (score.steps.value, score.steps.count) == (0.5, 2)
    assert score.steps == score_action_parts(episodes).action_type
    assert (score.episodes.value, score.episodes.count, score.step_floor) == (0, 1, 1)
