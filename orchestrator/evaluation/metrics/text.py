"""Answers as texts, for tasks whose answers are no actions: exact match, ROUGE-L and BLEU."""

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

_ALONE = (
    range(0x3040, 0x3100),
    range(0x3400, 0x4DC0),
    range(0x4E00, 0xA000),
    range(0xF900, 0xFB00),
    range(0x20000, 0x32400),
)
"""Kana and Chinese characters: written without blanks, so that each counts as a word."""


@dataclass(frozen=True)
class AnsweredText:
    """The true answer to a question, and the given one (None: unscored). `key` names the question in any strategy."""

    key: object
    cluster: str
    truth: str
    answer: str | None
    question: str = ""


def exact_match(truth: str, answer: str) -> float:
    """Return 1 for the same text, letter case and runs of blanks aside, else 0."""
    return float(normalized(truth) == normalized(answer))


@lru_cache(maxsize=1 << 14)
def rouge_l(truth: str, answer: str) -> float:
    """Return the F-measure of the longest common subsequence of words (Lin 2004), by rouge-score, without stemming.

    Words are those of `words`; the same text (see exact_match) has 1 even where it holds no word.
    """
    if exact_match(truth, answer):
        return 1.0
    return float(_rouge().score(truth, answer)["rougeL"].fmeasure)


def words(text: str) -> list[str]:
    """Return the case-folded runs of letters, digits and their marks, in any script.

    Of ASCII text these are rouge-score's own. Kana, Chinese characters and pictographs are words one by one.
    """
    return "".join(map(_spaced, unicodedata.normalize("NFC", text.casefold()))).split()


@lru_cache(maxsize=1 << 14)
def bleu(truth: str, answer: str) -> float:
    """Return the BLEU of one answer in [0, 1], by sacrebleu with its own smoothing and effective order."""
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
    """Return the score of every answer that there is, by its key."""
    return {
        each.key: QuestionScore(each.cluster, score(each.truth, each.answer))
        for each in answers
        if each.answer is not None
    }


def mean_score(graded: Mapping[Any, QuestionScore]) -> Estimate:
    """Return the mean score, with its standard error clustered by episode."""
    return clustered_mean([each.score for each in graded.values()], [each.cluster for each in graded.values()])


@lru_cache(maxsize=1 << 14)
def _spaced(character: str) -> str:
    category = unicodedata.category(character)
    if category != "So" and category[0] not in "LMN":
        return " "
    alone = category == "So" or any(ord(character) in block for block in _ALONE)
    return f" {character} " if alone else character


class _Words:
    """`words` as rouge-score takes it."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # Takes seconds: it imports all of nltk.

    return RougeScorer(["rougeL"], tokenizer=_Words())


@cache
def _bleu() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(effective_order=True)
