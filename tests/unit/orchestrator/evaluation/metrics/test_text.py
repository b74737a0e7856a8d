"""Metrics of whole answers, by hand and against rouge_score."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.tokenize import tokenize

from orchestrator.evaluation.metrics.text import (
    AnsweredText,
    bleu,
    exact_match,
    mean_score,
    rouge_l,
    score_answers,
    words,
)


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
