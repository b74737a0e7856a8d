"""Paired differences: how much better one strategy is than another on the same questions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from orchestrator.evaluation.actions import normalized
from orchestrator.evaluation.metrics.uncertainty import Estimate, clustered_mean_of_differences


class Question(NamedTuple):
    """Identifies a question across strategies and jobs: its location in a dataset and a digest of its content.

    Two files may use one name for different data. Their `content` then differs and the questions do not pair.
    """

    dataset: str
    episode: str
    position: int
    content: str

    @property
    def location(self) -> tuple[str, str, int]:
        """The question's place in its dataset, regardless of content."""
        return self.dataset, self.episode, self.position


def content_digest(*texts: str) -> str:
    """Return a short hash of texts that ignores letter case and runs of whitespace."""
    return hashlib.sha256("\0".join(map(normalized, texts)).encode(errors="surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True)
class QuestionScore:
    """The score of one question in [0, 1], and the cluster (episode) that it belongs to."""

    cluster: str
    score: float


def paired_difference(first: Mapping[Any, QuestionScore], second: Mapping[Any, QuestionScore]) -> Estimate:
    """Return the mean of first - second over the questions that both scored, with its clustered standard error.

    Questions that only one side scored are left out. Differences within a question vary much less than the scores
    themselves, so this interval is narrower than the two scores suggest.
    """
    shared = [key for key in first if key in second]
    differences = [first[key].score - second[key].score for key in shared]
    return clustered_mean_of_differences(differences, [first[key].cluster for key in shared])
