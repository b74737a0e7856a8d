"""An evaluation job as callers see it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from orchestrator.evaluation.spec import EvaluationSpec


class EvaluationState(StrEnum):
    """The state of a job. Queued: no shard has been claimed yet. The last three are final until a retry."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether the job has ended."""
        return self in (EvaluationState.SUCCEEDED, EvaluationState.FAILED, EvaluationState.CANCELLED)


@dataclass(frozen=True)
class Evaluation:
    """A job: its spec, its progress, and where its records and report are or will be.

    `done_samples` have their record, `failed_samples` of them with an error. `bad_rows` of the datasets could not be
    read. `stalled` is the reason why the job does not progress, if it is known.
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
    """Jobs, newest first, and the token of the next page ("" on the last page)."""

    evaluations: tuple[Evaluation, ...]
    next_page_token: str = ""


@dataclass(frozen=True)
class Report:
    """The report of a job that has ended: summary.json, summary.md, and the folder of its files."""

    summary_json: str
    summary_markdown: str
    output_uri: str
