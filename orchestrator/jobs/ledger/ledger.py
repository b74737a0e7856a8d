"""The ledger of evaluation jobs in Redis: the truth about them. Celery only wakes workers.

A job is divided into units of work: its shards, and at the end its report. An owner claims a unit under a lease, renews
the lease while it works, and completes or releases the unit. Every transition is one Lua script in `scripts/`: Redis
runs a script to its end before any other command.

Keys of a job, all below `loraretriever:evaluation:{<id>}:`

    job       hash        spec, state, counters
    shards    hash        shard number -> its samples as JSON
    records   hash        sample key -> its record as JSON
    units     sorted set  open units, scored by the time (Redis's own clock, seconds) from which they can be claimed:
                          the end of the lease of a unit that is held, a time long past for one that is not
    owners    hash        unit -> the owner that holds it
    attempts  hash        unit -> how often it was claimed
    tries     hash        sample key -> the owners that began it and have not recorded it
"""

from __future__ import annotations

import json
import uuid

from orchestrator.evaluation.records import Record
from orchestrator.jobs.ledger.job_store import JobStore
from orchestrator.jobs.ledger.replies import (
    ClaimReply,
    CompleteReply,
    LeaseState,
    Postponement,
    RecordReply,
    ReleaseReply,
    Start,
)
from orchestrator.jobs.ledger.sample_store import SampleStore
from orchestrator.jobs.ledger.store import ACTIVE, INDEX, PREFIX, RedisStore, keys_of
from orchestrator.jobs.ledger.types import Backlog, Claim, LedgerLimits
from orchestrator.jobs.ledger.worker_presence import WorkerPresence


class Ledger:
    """The life of a lease: claim, renew, complete, release. Raises UnavailableError while Redis is away.

    `jobs` are the jobs themselves, `samples` their plans and records, `workers` the heartbeats.
    """

    def __init__(self, store: RedisStore, limits: LedgerLimits | None = None) -> None:
        self.limits = limits or LedgerLimits()
        self.samples = SampleStore(store)
        self.jobs = JobStore(store, self.samples, self.limits.record_ttl_s)
        self.workers = WorkerPresence(store, self.limits.lease_s)
        self._store = store

    async def claim(self) -> Claim | None:
        """Claim the unit that is most due, under a lease; None if there is none.

        A report comes before any shard. Then jobs take turns: a shard of the job that has the fewest under way, and
        among those of the one that has waited longest since its last turn.
        """
        owner, limits = uuid.uuid4().hex, self.limits
        reply, *unit = await self._store.run(
            "claim", [ACTIVE, INDEX], [PREFIX, owner, limits.lease_s, limits.unit_attempts, limits.report_attempts]
        )
        status = ClaimReply(reply)
        if status is ClaimReply.NONE:
            return None
        evaluation_id, name, attempts = unit
        return Claim(evaluation_id, name, owner, int(attempts), exhausted=status is ClaimReply.EXHAUSTED)

    async def renew(self, claim: Claim) -> LeaseState:
        """Renew the lease of a unit."""
        keys = keys_of(claim.evaluation_id, "job", "units", "owners")
        return LeaseState(await self._store.run("renew", keys, [claim.unit, claim.owner, self.limits.lease_s]))

    async def complete(self, claim: Claim) -> bool:
        """Complete a shard; return whether it was the job's last one, so that the report is due."""
        keys = keys_of(claim.evaluation_id, "job", "units", "owners")
        return CompleteReply(await self._store.run("complete", keys, [claim.unit])) is CompleteReply.REPORT_DUE

    async def release(self, claim: Claim) -> bool:
        """Release a unit undone, to be claimed by another; return False if it was lost to another before."""
        keys = keys_of(claim.evaluation_id, "units", "owners", "attempts")
        reply = await self._store.run("release", keys, [claim.unit, claim.owner])
        return ReleaseReply(reply) is ReleaseReply.RELEASED

    async def begin_sample(self, claim: Claim, key: str) -> Start:
        """Count a try of a sample of a claimed shard, and return whether it may be made."""
        keys = keys_of(claim.evaluation_id, "job", "owners", "records", "tries")
        arguments = [claim.unit, claim.owner, key, self.limits.sample_attempts]
        return Start(await self._store.run("begin_sample", keys, arguments))

    async def unclaim_sample(self, claim: Claim, key: str) -> None:
        """Undo `begin_sample`: the sample was not answered, for a reason that is not its own."""
        await self._store.run("unclaim_sample", keys_of(claim.evaluation_id, "tries"), [key, claim.owner])

    async def record(self, claim: Claim, record: Record) -> bool:
        """Store the record of a sample; return False, and count nothing, if it has one or the job takes no more.

        The lease does not matter: a late answer of a lost shard is as good as another one.
        """
        keys = keys_of(claim.evaluation_id, "job", "records", "tries", "attempts")
        arguments = [record.sample.key, json.dumps(record.to_json()), int(record.error is not None), claim.unit]
        return RecordReply(await self._store.run("record", keys, arguments)) is RecordReply.STORED

    async def postpone_report(self, claim: Claim, error: str, patience_s: float) -> Postponement:
        """Postpone a report that could not be stored because of `error`; the pause doubles with every failure.

        OVER, and nothing is postponed, once it has failed for `patience_s`.
        """
        limits = self.limits
        keys = keys_of(claim.evaluation_id, "job", "units", "owners", "attempts")
        arguments = [claim.owner, error, limits.first_pause_s, limits.longest_pause_s, patience_s]
        return Postponement(await self._store.run("postpone_report", keys, arguments))

    async def backlog(self) -> Backlog:
        """Close the shards of cancelled jobs whose owner died; return how many units are left."""
        return Backlog(*map(int, await self._store.run("sweep", [ACTIVE], [PREFIX])))
