"""The metric of the published study: TF-IDF cosine similarity of answer and truth, above a threshold."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from infra.contract.errors import InvalidArgumentError

LEGACY_THRESHOLD = 0.6

_TOKEN = re.compile(r"(?u)\b\w\w+\b")
_IDF_OF_ONE = math.log(3 / 2) + 1
"""IDF ln((1 + documents) / (1 + df)) + 1 of a token in one of the two strings; for a token in both it is 1."""


@dataclass(frozen=True)
class LegacyMetric:
    """A step is correct if its similarity to the truth is strictly above `threshold`."""

    threshold: float = LEGACY_THRESHOLD
    name: ClassVar[str] = "legacy"

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise InvalidArgumentError("threshold", f"must be a similarity in [0, 1], got {self.threshold}")

    def applies_to(self, truth: str) -> bool:
        """Whether answers to `truth` can be scored; always true."""
        return True

    def accepts(self, truth: str, answer: str) -> bool:
        """Whether `answer` counts as `truth`."""
        return legacy_similarity(truth, answer) > self.threshold


@lru_cache(maxsize=1 << 16)
def legacy_similarity(truth: str, answer: str) -> float:
    """Return the TF-IDF cosine similarity, fitted on the two strings alone.

    Equals scikit-learn's `TfidfVectorizer().fit_transform([truth, answer])`, in closed form: a report compares many
    pairs, and each fit takes about a millisecond. Tokens are lower-case words of two or more letters, so one-character
    labels ("7", "F") do not count. If one string has no tokens, the similarity is 0. If neither has any, where
    scikit-learn raises, it is 1 for equal strings and 0 for others.
    """
    left, right = _counts(truth), _counts(answer)
    if not left and not right:
        return float(truth.strip() == answer.strip())
    if not left or not right:
        return 0.0
    shared = left.keys() & right.keys()
    product = sum(left[token] * right[token] for token in shared)
    return product / (_norm(left, shared) * _norm(right, shared))


def _norm(counts: Counter[str], shared: set[str]) -> float:
    squares = ((count * (1.0 if token in shared else _IDF_OF_ONE)) ** 2 for token, count in counts.items())
    return math.sqrt(math.fsum(squares))


@lru_cache(maxsize=1 << 14)
def _counts(text: str) -> Counter[str]:
    return Counter(_TOKEN.findall(text.lower()))
