"""What the ledger is told and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from orchestrator.evaluation.records import Sample
from orchestrator.evaluation.spec import EvaluationSpec

FINISH = "finish"


@dataclass(frozen=True)
class Taken:
    """A unit of a job that its `owner` holds now: a shard, "0" to "n-1", or FINISH, the report.

    `attempts` counts how often it was taken, this time included, less the times it was handed back in good order;
    `exhausted`: too often.
    """

    evaluation_id: str
    unit: str
    owner: str
    attempts: int = 1
    exhausted: bool = False


class Lease(StrEnum):
    """What a holder learns when it renews: held still, lost to another, or the job was cancelled."""

    HELD = "held"
    LOST = "lost"
    CANCELLED = "cancelled"


class Start(StrEnum):
    """Whether a sample may be asked: begun; it has its record; tried too often; unit lost; or job cancelled."""

    BEGUN = "begun"
    RECORDED = "recorded"
    EXHAUSTED = "exhausted"
    LOST = "lost"
    CANCELLED = "cancelled"


class Cancellation(StrEnum):
    """What a request to cancel did: units under way will end it; the report is to be written; the job has ended before
    any record; it has failed, since its report could not be stored.
    """

    PENDING = "0"
    FINISH = "1"
    ENDED = "2"
    GIVEN_UP = "3"


@dataclass(frozen=True)
class Backlog:
    """Jobs that have not ended, their units that anyone may take now, and those that somebody holds."""

    jobs: int
    waiting: int
    held: int


@dataclass(frozen=True)
class LedgerLimits:
    """How long a silent holder keeps its unit, and how often is too often.

    `unit_attempts` counts those without any sample recorded in between; `sample_attempts` counts deaths of the worker,
    `finish_attempts` deaths while the report was written. A report that cannot be stored is tried again for
    `report_patience_s`, with pauses that grow from `first_pause_s` to `longest_pause_s`. `record_ttl_s` is how long
    plan, records and request id outlive a job that has its report or was cancelled before it had any record; those of a
    job that failed stay.
    """

    lease_s: float = 20.0
    unit_attempts: int = 10
    sample_attempts: int = 3
    finish_attempts: int = 3
    report_patience_s: float = 86_400.0
    first_pause_s: float = 3.0
    longest_pause_s: float = 300.0
    record_ttl_s: int = 86_400


@dataclass(frozen=True)
class NewEvaluation:
    """A planned job that is to be published. Of its bad rows only the first few are kept, and their number."""

    spec: EvaluationSpec
    shards: Sequence[Sequence[Sample]]
    output_uri: str
    bad_rows: Sequence[Mapping[str, Any]] = ()
    bad_row_count: int = 0
    provenance: Mapping[str, Any] | None = None

    @property
    def total_samples(self) -> int:
        """Samples of all shards."""
        return sum(len(shard) for shard in self.shards)
