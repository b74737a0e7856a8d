"""What the ledger takes and returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.evaluation.records import Sample
from orchestrator.evaluation.spec import EvaluationSpec
from orchestrator.settings import OrchestratorSettings

REPORT_UNIT = "finish"
"""The unit that writes a job's report. Its shards are the units "0" to "n-1"."""


@dataclass(frozen=True)
class Claim:
    """A unit of a job that `owner` holds under a lease: a shard or the report.

    `attempts` counts how often it was claimed, this time included, less the times it was released. `exhausted`: more
    often than the limits allow.
    """

    evaluation_id: str
    unit: str
    owner: str
    attempts: int = 1
    exhausted: bool = False

    @property
    def is_report(self) -> bool:
        """Whether the unit is the report."""
        return self.unit == REPORT_UNIT


@dataclass(frozen=True)
class Backlog:
    """Jobs that have not ended, their units that can be claimed now, and those that are held."""

    jobs: int
    waiting: int
    held: int


@dataclass(frozen=True)
class LedgerLimits:
    """How long a lease lasts, and how many attempts are too many.

    Attributes:
        lease_s: Seconds after which the unit of a silent owner can be claimed by another.
        unit_attempts: Claims of a shard without any sample recorded in between.
        sample_attempts: Workers that died while they had a sample.
        report_attempts: Workers that died while they wrote a report.
        report_patience_s: Seconds for which a report that cannot be stored is tried again.
        first_pause_s: Pause after the first failure to store a report; it doubles with every further one.
        longest_pause_s: Upper limit of that pause.
        record_ttl_s: Seconds that plan, records and request id outlive a job that has its report, or was cancelled
            before any record. Those of a failed job stay.
    """

    lease_s: float = 20.0
    unit_attempts: int = 10
    sample_attempts: int = 3
    report_attempts: int = 3
    report_patience_s: float = 86_400.0
    first_pause_s: float = 3.0
    longest_pause_s: float = 300.0
    record_ttl_s: int = 86_400

    @classmethod
    def of(cls, settings: OrchestratorSettings) -> LedgerLimits:
        """Return the limits that the settings give."""
        return cls(
            lease_s=settings.shard_lease_s,
            sample_attempts=settings.sample_attempts,
            record_ttl_s=settings.record_ttl_s,
            report_patience_s=settings.report_patience_s,
        )


@dataclass(frozen=True)
class NewEvaluation:
    """A planned job to be published. `bad_rows` are the first of `bad_row_count`."""

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


@dataclass(frozen=True)
class JobDetails:
    """What a report needs in addition to the job: the bad rows of its datasets, and what it takes to repeat the job."""

    bad_rows: Sequence[dict[str, Any]]
    provenance: Mapping[str, Any]
