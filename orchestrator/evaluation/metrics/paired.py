"""How much better one strategy is than another on the same questions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from orchestrator.evaluation.actions import normalized
from orchestrator.evaluation.metrics.uncertainty import Estimate, clustered_mean_of_differences


class Question(NamedTuple):
    """Names a question in any strategy and job: where it stands in its dataset, and a digest of what is there.

    Two files may call different data by one name; then `content` differs, and the questions do not pair.
    """

    dataset: str
    episode: str
    position: int
    content: str

    @property
    def place(self) -> tuple[str, str, int]:
        """What is left where files use one name for different data."""
        return self.dataset, self.episode, self.position


def content_digest(*texts: str) -> str:
    """Return a short hash of texts, letter case and runs of blanks aside."""
    return hashlib.sha256("\0".join(map(normalized, texts)).encode(errors="surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True)
class QuestionScore:
    """The score of one question, in [0, 1], and the cluster (episode) that it depends on."""

    cluster: str
    score: float


def paired_difference(first: Mapping[Any, QuestionScore], second: Mapping[Any, QuestionScore]) -> Estimate:
    """Return the mean of first - second over the questions that both scored, with its clustered standard error.

    A question that one of them left unscored tells nothing of the difference and is left out. Differences of one
    question are much less spread than the two scores, so this interval is the one to judge by.
    """
    both = [key for key in first if key in second]
    differences = [first[key].score - second[key].score for key in both]
    return clustered_mean_of_differences(differences, [first[key].cluster for key in both])
