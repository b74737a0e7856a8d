"""A judge's verdicts on the answers of a job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class JudgeFacts:
    """The model and prompt that graded the answers, and the cost.

    Attributes:
        model: name of the model.
        endpoint: its URL without credentials.
        prompt: the prompt template.
        calls: requests that were made.
        cached: replies that were read from the cache.
        prompt_tokens: tokens of the requests made, as counted by the endpoint (0: it does not count).
        completion_tokens: tokens of the replies.
        unscored: number of answers without a grade, by reason.
    """

    model: str
    endpoint: str
    prompt: str
    calls: int
    cached: int
    prompt_tokens: int
    completion_tokens: int
    unscored: dict[str, int]


@dataclass(frozen=True)
class Verdict:
    """A judge's verdict on one answer: a grade in [0, 1] (None: unscored, for `reason`), and the whole reply."""

    grade: float | None
    reason: str = ""
    reply: str = ""


@dataclass(frozen=True)
class JobGrades:
    """A judge's verdicts on a job, by sample key. A sample without a verdict is unscored."""

    facts: JudgeFacts
    verdicts: Mapping[str, Verdict]

    @property
    def grades(self) -> dict[str, float]:
        """The grades by sample key, without unscored samples."""
        return {key: verdict.grade for key, verdict in self.verdicts.items() if verdict.grade is not None}
