"""What the ledger is told and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from orchestrator.evaluation.records import Sample
from orchestrator.evaluation.spec import EvaluationSpec


class Claim(StrEnum):
    """What came of asking for a unit: granted; held by another; over; ours, but tried too often."""

    GRANTED = "granted"
    HELD = "held"
    OVER = "over"
    EXHAUSTED = "exhausted"


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
    """What a request to cancel did: units under way will end it; "finish" is to be sent; the job has ended."""

    PENDING = "0"
    FINISH = "1"
    ENDED = "2"


@dataclass(frozen=True)
class LedgerLimits:
    """How long a silent holder keeps its unit, when a unit that nobody took is sent again, and how often is too often.

    `unit_attempts` counts those without any sample recorded in between; `sample_attempts` counts deaths of the worker;
    `finish_attempts` counts tries to write the report. `record_ttl_s` is how long plan, records and request id outlive
    a job that has its report or was cancelled, `failed_ttl_s` one that failed.
    """

    lease_s: float = 20.0
    resend_s: float = 5.0
    unit_attempts: int = 10
    sample_attempts: int = 3
    finish_attempts: int = 3
    record_ttl_s: int = 86_400
    failed_ttl_s: int = 604_800


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
