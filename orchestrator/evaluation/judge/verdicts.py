"""The grades that a judge gave the answers of a job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class JudgeFacts:
    """Who graded the answers, by which prompt, and what it took.

    Calls that were made, replies that were known before, and the tokens of the calls, as far as the endpoint counts
    them. `unscored` counts answers without a grade, by reason.
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
    """What a judge said of one answer: a grade in [0, 1] (None: unscored, and why), and the whole reply."""

    grade: float | None
    reason: str = ""
    reply: str = ""


@dataclass(frozen=True)
class JobGrades:
    """What a judge said of a job, by sample key; a sample that is not among them is unscored."""

    facts: JudgeFacts
    verdicts: Mapping[str, Verdict]

    @property
    def grades(self) -> dict[str, float]:
        """The grades that there are, by sample key."""
        return {key: verdict.grade for key, verdict in self.verdicts.items() if verdict.grade is not None}
