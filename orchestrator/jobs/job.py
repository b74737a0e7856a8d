"""A job as its callers see it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from orchestrator.evaluation.spec import EvaluationSpec


class EvaluationState(StrEnum):
    """Where a job stands. Queued: no sample has been started. The last three are for good."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether the job moves no more."""
        return self in (EvaluationState.SUCCEEDED, EvaluationState.FAILED, EvaluationState.CANCELLED)


@dataclass(frozen=True)
class Evaluation:
    """A job: what was asked, where it stands, and where its records and report are (or will be).

    `done_samples` have their record, `failed_samples` of them in an error; `bad_rows` of the datasets were unreadable.
    `stalled` says why nothing moves just now, where that is known.
    """

    evaluation_id: str
    spec: EvaluationSpec
    state: EvaluationState
    total_samples: int
    create_time: datetime
    output_uri: str
    done_samples: int = 0
    failed_samples: int = 0
    bad_rows: int = 0
    end_time: datetime | None = None
    error: str = ""
    stalled: str = ""


@dataclass(frozen=True)
class EvaluationPage:
    """Jobs, newest first, and where to go on ("" on the last page)."""

    evaluations: tuple[Evaluation, ...]
    next_page_token: str = ""


@dataclass(frozen=True)
class Report:
    """The report of a job that has ended: summary.json, summary.md, and the folder with the records."""

    summary_json: str
    summary_markdown: str
    output_uri: str
