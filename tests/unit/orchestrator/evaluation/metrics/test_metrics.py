"""Metrics against values computed by hand and against independent implementations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer

from infra.contract.errors import InvalidArgumentError
from orchestrator.evaluation.metrics.action import ActionMetric
from orchestrator.evaluation.metrics.episodes import AnsweredEpisode, score_episodes
from orchestrator.evaluation.metrics.floor import Floor, floor_of
from orchestrator.evaluation.metrics.legacy import LegacyMetric, legacy_similarity
from orchestrator.evaluation.metrics.retrieval import RankedAdapters, score_retrieval
from orchestrator.evaluation.metrics.uncertainty import UNSCORED, Estimate, clustered_mean

TAP_A, TAP_B = 'Click on button with the text "apple"', 'Click on button with the text "berry"'
OPEN, UP, DONE = "Open App: Clock", "Scroll up", "Check status: successful"
ACTION = ActionMetric()


def episode(
    truths: Sequence[str], answers: Sequence[str | None], cluster: str = "e", dataset: str = "d"
) -> AnsweredEpisode:
    return AnsweredEpisode(dataset, cluster, tuple(truths), tuple(answers))


# Uncertainty


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
    scores = np.array([design[groups == g].T @ residuals[groups == g] for g in np.unique(groups)])
    variance = bread @ (scores.T @ scores) @ bread * len(scores) / (len(scores) - 1)
    estimate = clustered_mean(values.tolist(), [str(g) for g in groups])
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.standard_error == pytest.approx(math.sqrt(variance[0, 0]), abs=1e-12)


def test_clustered_error_of_single_values_is_textbook_one() -> None:
    values = [0.0, 1.0, 1.0, 0.0, 1.0]
    estimate = clustered_mean(values, list("abcde"))
    assert estimate.standard_error == pytest.approx(np.std(values, ddof=1) / math.sqrt(5))


def test_one_cluster_has_mean_without_error_and_no_values_are_unscored() -> None:
    assert clustered_mean([1, 0], ["a", "a"]) == Estimate(0.5, None, 2, 1)
    assert clustered_mean([], []) == UNSCORED == Estimate(None, None, 0, 0)


# Legacy

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
    assert not ACTION.accepts('Click on button with the text "1"', 'Click on button with the text "0"')


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


# Action


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


# Steps and episodes


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


# Floor


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
    episodes = [
        episode([TAP_A], [OPEN], "e1", "x"),
        episode([TAP_A], [OPEN], "e2", "x"),
        episode([UP], [OPEN], "e3", "y"),
    ]
    assert score_episodes(episodes, ACTION).step_floor == 1
    together = [episode(original.truths, original.answers, original.cluster, "one") for original in episodes]
    assert score_episodes(together, ACTION).step_floor == pytest.approx(2 / 3)


def test_floor_covers_only_scored_steps() -> None:
    assert floor_of(((None, TAP_A), (OPEN, TAP_B)), ACTION) == Floor(2, 3, 1, 1)


# Retrieval


def test_retrieval_by_hand() -> None:
    found = [("a", "b", "c"), ("b", "a", "c"), ("b", "c", "a"), ("b", "c", "d", "a"), ()]
    score = score_retrieval([RankedAdapters(str(index), "a", names) for index, names in enumerate(found)], top_k=4)
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
