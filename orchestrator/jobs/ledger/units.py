"""Who does what: units of work, each taken by one worker at a time under a lease."""

from __future__ import annotations

import uuid
from enum import StrEnum

from orchestrator.jobs.ledger import scripts
from orchestrator.jobs.ledger.store import ACTIVE, INDEX, PREFIX, RedisStore, keys_of
from orchestrator.jobs.ledger.types import Backlog, Lease, LedgerLimits, Taken


class Postponed(StrEnum):
    """Whether a report that could not be stored is tried again: later; no more; or it is another's to say."""

    LATER = "later"
    OVER = "over"
    LOST = "lost"


class Units:
    """The units of all jobs. Raises UnavailableError when Redis stays away."""

    def __init__(self, store: RedisStore, limits: LedgerLimits) -> None:
        self._store = store
        self._limits = limits

    async def take(self) -> Taken | None:
        """Take the unit that is most due, under a lease; None where there is none.

        A report comes before any shard; then jobs take turns: a shard of the job that has fewest under way, and of
        several of the one whose last turn is longest ago.
        """
        owner, limits = uuid.uuid4().hex, self._limits
        found = await self._store.run(
            scripts.TAKE,
            [ACTIVE, INDEX],
            [PREFIX, owner, limits.lease_s, limits.unit_attempts, limits.finish_attempts],
        )
        if not found:
            return None
        evaluation_id, unit, attempts, exhausted = found
        return Taken(evaluation_id, unit, owner, int(attempts), bool(int(exhausted)))

    async def renew(self, taken: Taken) -> Lease:
        """Keep a unit for another lease."""
        return Lease(
            await self._store.run(
                scripts.RENEW,
                keys_of(taken.evaluation_id, "job", "units", "owners"),
                [taken.unit, taken.owner, self._limits.lease_s],
            )
        )

    async def release(self, taken: Taken) -> bool:
        """Give a unit back undone; False when it is another's by now."""
        return bool(
            await self._store.run(
                scripts.RELEASE,
                keys_of(taken.evaluation_id, "units", "owners", "attempts"),
                [taken.unit, taken.owner],
            )
        )

    async def postpone(self, taken: Taken, error: str, patience_s: float) -> Postponed:
        """Put a report off that could not be stored, for the reason `error`, until after a pause that grows.

        OVER, and nothing is put off, when it has failed for `patience_s` already.
        """
        limits = self._limits
        return Postponed(
            await self._store.run(
                scripts.POSTPONE,
                keys_of(taken.evaluation_id, "job", "units", "owners", "attempts"),
                [taken.owner, error, limits.first_pause_s, limits.longest_pause_s, patience_s],
            )
        )

    async def close(self, taken: Taken) -> bool:
        """Take a shard off the list; whether it was the last one, so that the report is open now."""
        return bool(
            await self._store.run(scripts.CLOSE, keys_of(taken.evaluation_id, "job", "units", "owners"), [taken.unit])
        )

    async def backlog(self) -> Backlog:
        """Return how much there is to do, once what dead workers held of cancelled jobs is taken off."""
        return Backlog(*map(int, await self._store.run(scripts.SWEEP, [ACTIVE], [PREFIX])))

    async def queue_length(self, queue: str) -> int:
        """Return how many messages wait in a Celery queue."""
        return int(await self._store.call(self._store.redis.llen(queue)))
