"""What the ledger's scripts reply: one enum for each script that replies with a word, with the script's own words."""

from __future__ import annotations

from enum import StrEnum


class PublishReply(StrEnum):
    """Whether a job was published, or its request id belongs to another one."""

    PUBLISHED = "published"
    KNOWN = "known"


class ClaimReply(StrEnum):
    """Whether a unit was claimed; an exhausted one is claimed, but was claimed too often before."""

    NONE = "none"
    CLAIMED = "claimed"
    EXHAUSTED = "exhausted"


class LeaseState(StrEnum):
    """The state of a lease when it is renewed: held; lost to another owner; or held while the job was cancelled."""

    HELD = "held"
    LOST = "lost"
    CANCELLED = "cancelled"


class ReleaseReply(StrEnum):
    """Whether a unit was returned undone, or belongs to another owner by now."""

    RELEASED = "released"
    LOST = "lost"


class Postponement(StrEnum):
    """Whether a report that could not be stored is tried again later, never, or by another owner."""

    LATER = "later"
    OVER = "over"
    LOST = "lost"


class CompleteReply(StrEnum):
    """Whether a shard was the job's last open one, so that the report is due."""

    REPORT_DUE = "report_due"
    SHARDS_LEFT = "shards_left"
    NOT_OPEN = "not_open"


class Start(StrEnum):
    """Whether a sample may be asked: begun; it has its record; tried too often; shard lost; or job cancelled."""

    BEGUN = "begun"
    RECORDED = "recorded"
    EXHAUSTED = "exhausted"
    LOST = "lost"
    CANCELLED = "cancelled"


class RecordReply(StrEnum):
    """Whether a record was stored; not if the sample has one, or the job takes no more."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    CLOSED = "closed"


class Cancellation(StrEnum):
    """What cancelling a job did.

    PENDING: units under way will end it. REPORT_DUE: its report is open. CANCELLED: it has ended without any record.
    FAILED: it has ended without its report, which had been postponed. ENDED: it had ended before.
    """

    PENDING = "pending"
    REPORT_DUE = "report_due"
    CANCELLED = "cancelled"
    FAILED = "failed"
    ENDED = "ended"


class ConcludeReply(StrEnum):
    """Whether a job was ended by this call, or had ended before."""

    CONCLUDED = "concluded"
    ENDED = "ended"


class RetryReply(StrEnum):
    """Whether a job's report is due again, or there is no failed or postponed report."""

    REPORT_DUE = "report_due"
    NOT_FAILED = "not_failed"


class DeleteReply(StrEnum):
    """Whether a job was deleted, or has not ended yet."""

    DELETED = "deleted"
    RUNNING = "running"
