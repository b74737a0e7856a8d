"""Text metrics, for tasks whose answers are not actions: exact match, ROUGE-L and BLEU."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from orchestrator.evaluation.actions import normalized
from orchestrator.evaluation.metrics.paired import QuestionScore
from orchestrator.evaluation.metrics.uncertainty import UNSCORED, Estimate, clustered_mean

TextScore = Callable[[str, str], float]

_SINGLE_CHARACTER_WORDS = (
    range(0x3040, 0x3100),
    range(0x3400, 0x4DC0),
    range(0x4E00, 0xA000),
    range(0xF900, 0xFB00),
    range(0x20000, 0x32400),
)
"""Kana and Chinese characters: written without spaces, so each counts as a word."""


@dataclass(frozen=True)
class AnsweredText:
    """The true answer to a question and the given one (None: unscored). `key` identifies it across strategies."""

    key: object
    cluster: str
    truth: str
    answer: str | None
    question: str = ""


def exact_match(truth: str, answer: str) -> float:
    """Return 1 for equal texts, ignoring letter case and runs of whitespace, otherwise 0."""
    return float(normalized(truth) == normalized(answer))


@lru_cache(maxsize=1 << 14)
def rouge_l(truth: str, answer: str) -> float:
    """Return the F-measure of the longest common subsequence of words (Lin 2004), by rouge-score, without stemming.

    Words are those of `words`. Equal texts (see exact_match) score 1 even without words.
    """
    if exact_match(truth, answer):
        return 1.0
    return float(_rouge().score(truth, answer)["rougeL"].fmeasure)


def words(text: str) -> list[str]:
    """Return the case-folded runs of letters, digits and their marks, in any script.

    For ASCII text these equal rouge-score's own tokens. Each kana, Chinese character and pictograph is a word.
    """
    return "".join(map(_spaced, unicodedata.normalize("NFC", text.casefold()))).split()


@lru_cache(maxsize=1 << 14)
def bleu(truth: str, answer: str) -> float:
    """Return the sentence BLEU of an answer in [0, 1], by sacrebleu with its default smoothing and effective order."""
    return min(1.0, float(_bleu().sentence_score(answer, [truth]).score) / 100)


TEXT_SCORES: Mapping[str, TextScore] = {"exact_match": exact_match, "rouge_l": rouge_l, "bleu": bleu}


@dataclass(frozen=True)
class TextScores:
    """Mean scores of whole answers, each in [0, 1]."""

    exact_match: Estimate
    rouge_l: Estimate
    bleu: Estimate


TEXTS_UNSCORED = TextScores(UNSCORED, UNSCORED, UNSCORED)


def score_texts(answers: Sequence[AnsweredText]) -> TextScores:
    """Score whole answers, with standard errors clustered by episode."""
    return TextScores(**{name: mean_score(score_answers(answers, score)) for name, score in TEXT_SCORES.items()})


def score_answers(answers: Sequence[AnsweredText], score: TextScore) -> dict[Any, QuestionScore]:
    """Return the score of every answer that is not None, by key."""
    return {
        answer.key: QuestionScore(answer.cluster, score(answer.truth, answer.answer))
        for answer in answers
        if answer.answer is not None
    }


def mean_score(scores: Mapping[Any, QuestionScore]) -> Estimate:
    """Return the mean score, with its standard error clustered by episode."""
    return clustered_mean([score.score for score in scores.values()], [score.cluster for score in scores.values()])


@lru_cache(maxsize=1 << 14)
def _spaced(character: str) -> str:
    category = unicodedata.category(character)
    if category != "So" and category[0] not in "LMN":
        return " "
    is_word = category == "So" or any(ord(character) in block for block in _SINGLE_CHARACTER_WORDS)
    return f" {character} " if is_word else character


class _WordTokenizer:
    """Tokenizer interface of rouge-score over `words`."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # Takes seconds: imports all of nltk.

    return RougeScorer(["rougeL"], tokenizer=_WordTokenizer())


@cache
def _bleu() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(effective_order=True)
