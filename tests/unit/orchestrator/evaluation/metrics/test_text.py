"""Metrics of whole answers, and the parts of actions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.tokenize import tokenize

from orchestrator.evaluation.metrics.action import ActionTypeMetric, score_action_parts
from orchestrator.evaluation.metrics.episodes import AnsweredEpisode, score_episodes
from orchestrator.evaluation.metrics.text import (
    AnsweredText,
    bleu,
    exact_match,
    mean_score,
    rouge_l,
    score_answers,
    words,
)
from orchestrator.evaluation.result_files import MetricName, score_file
from orchestrator.evaluation.spec import PromptProtocol
from tests.support.harness.evaluation_data import answered, failure, sample, write_records


def test_exact_match_ignores_case_and_whitespace() -> None:
    assert exact_match("A red\n car ", "a Red car") == 1
    assert exact_match("a red car", "a red cart") == 0


def test_rouge_l_is_f_measure_of_common_subsequence() -> None:
    # "the cat on the mat" is common: precision 5/5, recall 5/6.
    assert rouge_l("the cat sat on the mat", "the cat on the mat") == pytest.approx(2 * 5 / 11)
    assert rouge_l("the cat", "") == 0


@pytest.mark.parametrize("text", ["Привет, мир", "今日は良い天気", "हिन्दी में", "안녕하세요", "…", "42", ""])
def test_rouge_l_of_equal_texts_is_one_in_any_script(text: str) -> None:
    assert rouge_l(text, text) == 1
    assert rouge_l(text, f"  {text.upper()}") == 1


@pytest.mark.parametrize(
    ("truth", "answer"),
    [("Открой Gmail", "Закрой Gmail"), ("की Gmail", "कि Gmail"), ("Gmail 好", "Gmail 坏"), ("ok 👍", "ok 👎")],
)
def test_rouge_l_is_below_one_for_different_words_around_same_ascii(truth: str, answer: str) -> None:
    assert rouge_l(truth, answer) == pytest.approx(1 / 2)


def test_rouge_l_counts_each_chinese_character_as_word() -> None:
    # 4 of 6 characters are common, in order.
    assert rouge_l("今天天气很好", "今天天气不错") == pytest.approx(4 / 6)
    assert rouge_l("!", "?") == 0


@given(st.text(st.characters(max_codepoint=127)))
def test_words_of_ascii_text_match_rouge_score(text: str) -> None:
    assert words(text) == tokenize(text, None)


def test_bleu_is_in_0_to_1() -> None:
    assert bleu("the cat sat on the mat", "the cat sat on the mat") == pytest.approx(1)
    # Unigrams 5/5, bigrams 3/4, trigrams 1/3, smoothed 4-grams 1/4; brevity exp(1 - 6/5).
    assert 0.3 < bleu("the cat sat on the mat", "the cat on the mat") < 0.6
    assert bleu("the cat", "") == 0


def test_absent_answers_are_unscored() -> None:
    graded = score_answers([AnsweredText(1, "a", "x", "x"), AnsweredText(2, "b", "x", None)], exact_match)
    assert list(graded) == [1]
    assert mean_score(graded).value == 1
    assert mean_score({}).value is None


def test_records_and_rows_are_scored_by_whole_answers(tmp_path: Path) -> None:
    asked = [sample("two\nlines", episode=str(n), protocol=PromptProtocol.SEQUENCE) for n in range(3)]
    write_records(
        tmp_path / "r.jsonl", [answered(asked[0], "two  lines"), answered(asked[1], "one"), failure(asked[2])]
    )
    found = score_file(tmp_path / "r.jsonl", MetricName.EXACT_MATCH)
    assert (found.step_accuracy, found.step_count, found.failed_count) == (0.5, 2, 1)
    assert (found.episode_accuracy, found.floor, found.metric) == (None, None, "exact_match")
    row = {"episode_id": "1", "ground_truths": ["a b c d", "e"], "predictions": ["a b c d"]}
    (tmp_path / "s.jsonl").write_text(json.dumps(row))
    assert score_file(tmp_path / "s.jsonl", MetricName.BLEU).step_accuracy == pytest.approx(0.5)


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
    found = score_episodes(episodes, ActionTypeMetric())
    assert (found.steps.value, found.steps.count) == (0.5, 2)
    assert found.steps == score_action_parts(episodes).action_type
    assert (found.episodes.value, found.episodes.count, found.step_floor) == (0, 1, 1)


def test_file_score_has_parts(tmp_path: Path) -> None:
    row = {"episode_id": "1", "ground_truths": ["Scroll up", "Scroll up"], "predictions": ["Scroll down", "Scroll up"]}
    (tmp_path / "s.jsonl").write_text(json.dumps(row))
    found = score_file(tmp_path / "s.jsonl")
    assert (found.step_accuracy, found.action_type, found.argument) == (0.5, 1, 0.5)
    assert score_file(tmp_path / "s.jsonl", MetricName.ACTION_TYPE).step_accuracy == 1
