"""The ledger: what every job consists of and how far it is, in Redis. It is the truth; Celery only wakes workers."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from infra.contract.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from orchestrator.evaluation.spec import EvaluationSpec
from orchestrator.jobs.job import Evaluation, EvaluationPage, EvaluationState
from orchestrator.jobs.ledger import scripts
from orchestrator.jobs.ledger.fields import PROGRESS, digest, evaluation_of, moved, same_job
from orchestrator.jobs.ledger.presence import Presence
from orchestrator.jobs.ledger.samples import SampleBook
from orchestrator.jobs.ledger.store import ACTIVE, INDEX, RedisStore, key_of, keys_of, request_key
from orchestrator.jobs.ledger.types import Cancellation, LedgerLimits, NewEvaluation
from orchestrator.jobs.ledger.units import Units

MAX_PAGE_CHARACTERS = 16 * 2**20
LONG_SPEC_CHARACTERS = 50_000
_BULK = ("shards", "records")


class Ledger:
    """Every job's spec, plan, records and counters. Raises UnavailableError when Redis stays away.

    `units` says who does what, `samples` what came of it, `workers` who is alive.
    """

    def __init__(self, store: RedisStore, limits: LedgerLimits | None = None) -> None:
        self.limits = limits or LedgerLimits()
        self.units = Units(store, self.limits)
        self.samples = SampleBook(store, self.limits)
        self.workers = Presence(store, self.limits.lease_s)
        self._store = store

    async def publish(self, job: NewEvaluation, request_id: str = "", asked: EvaluationSpec | None = None) -> str:
        """Store a job and return its id; the id of the job of that request id when there is one.

        `asked` is the spec as the request put it, where it is not that of the job itself. Raises AlreadyExistsError
        when the request id belongs to another one.
        """
        evaluation_id = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:8]}"
        request = request_key(request_id or evaluation_id)
        await self.samples.write_plan(evaluation_id, job.shards)
        fields = {
            "id": evaluation_id,
            "request": request,
            "spec": json.dumps(job.spec.to_json(), sort_keys=True),
            "state": EvaluationState.QUEUED.value,
            "total": job.total_samples,
            "done": 0,
            "failed": 0,
            "bad_rows": job.bad_row_count,
            "bad_row_list": json.dumps(list(job.bad_rows)),
            "provenance": json.dumps(job.provenance or {}),
            "created": datetime.now(UTC).isoformat(),
            "output_uri": f"{job.output_uri.rstrip('/')}/{evaluation_id}",
        }
        known = await self._store.run(
            scripts.PUBLISH,
            [request, *keys_of(evaluation_id, "job", "shards", "units"), INDEX, ACTIVE],
            [
                evaluation_id,
                digest(asked or job.spec),
                len(job.shards),
                *(part for pair in fields.items() for part in pair),
            ],
        )
        if not known or known.split(" ")[0] == evaluation_id:  # The latter: sent again as its first reply was lost.
            return evaluation_id
        await self._store.call(self._store.redis.delete(*keys_of(evaluation_id, "shards")))
        return same_job(known, asked or job.spec, request_id)

    async def find_request(self, request_id: str, asked: EvaluationSpec) -> str | None:
        """Return the job that was published under `request_id`, if any; AlreadyExistsError when it is another."""
        known = await self._store.call(self._store.redis.get(request_key(request_id))) if request_id else None
        return same_job(known, asked, request_id) if known else None

    async def get(self, evaluation_id: str) -> Evaluation:
        """Return a job as it stands. Raises NotFoundError."""
        fields = await self._store.call(self._store.redis.hgetall(key_of(evaluation_id, "job")))
        if not fields:
            raise _not_found(evaluation_id)
        return await _parsed(fields)

    async def look_again(self, job: Evaluation) -> Evaluation:
        """Return a job as it stands now; its spec is not read again. Raises NotFoundError."""
        values = await self._store.call(self._store.redis.hmget(key_of(job.evaluation_id, "job"), list(PROGRESS)))
        fields = {name: value for name, value in zip(PROGRESS, values, strict=True) if value is not None}
        if not fields:
            raise _not_found(job.evaluation_id)
        return moved(job, fields)

    async def details(self, evaluation_id: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Return the bad rows of a job's datasets, and what else is needed to repeat it."""
        bad_rows, provenance = await self._store.call(
            self._store.redis.hmget(key_of(evaluation_id, "job"), ["bad_row_list", "provenance"])
        )
        return json.loads(bad_rows or "[]"), json.loads(provenance or "{}")

    async def page(self, page_size: int, after: str = "") -> EvaluationPage:
        """Return a page of jobs, newest first, beginning after the job `after`; a short one where specs are long.

        Raises InvalidArgumentError for an `after` that is none.
        """
        offset = 0
        if after:
            rank = await self._store.call(self._store.redis.zrevrank(INDEX, after))
            if rank is None:
                raise InvalidArgumentError("page_token", f"{after[:40]!r} is not a token that this server gave out")
            offset = int(rank) + 1
        ids = await self._store.call(self._store.redis.zrevrange(INDEX, offset, offset + page_size))
        jobs: list[Evaluation] = []
        characters = 0
        for place, evaluation_id in enumerate(ids[:page_size]):
            fields = await self._store.call(self._store.redis.hgetall(key_of(evaluation_id, "job")))
            characters += len(fields.get("spec", ""))
            if jobs and characters > MAX_PAGE_CHARACTERS:
                return EvaluationPage(tuple(jobs), ids[place - 1])
            if fields:
                jobs.append(await _parsed(fields))
        return EvaluationPage(tuple(jobs), ids[page_size - 1] if len(ids) > page_size else "")

    async def active(self) -> list[str]:
        """Return the ids of the jobs that have not ended."""
        return sorted(await self._store.call(self._store.redis.smembers(ACTIVE)))

    async def cancel(self, evaluation_id: str) -> Cancellation:
        """Stop a job: no further sample is begun. Does nothing to a job that has ended."""
        await self.get(evaluation_id)
        names = keys_of(evaluation_id, "job", "units", "owners", "attempts", "tries")
        return Cancellation(
            str(
                await self._store.run(
                    scripts.CANCEL,
                    [*names, ACTIVE, *keys_of(evaluation_id, *_BULK)],
                    [evaluation_id, datetime.now(UTC).isoformat(), self.limits.record_ttl_s],
                )
            )
        )

    async def is_cancelled(self, evaluation_id: str) -> bool:
        """Whether somebody asked to stop the job."""
        return bool(await self._store.call(self._store.redis.hexists(key_of(evaluation_id, "job"), "cancelled")))

    async def conclude(self, evaluation_id: str, state: EvaluationState, error: str = "") -> bool:
        """End a job; whether this call did it. Its counters stay, its plan and records for a while.

        A failed job has no report: its records are all there is of it, and stay until it is retried or deleted.
        """
        ttl_s = 0 if state is EvaluationState.FAILED else self.limits.record_ttl_s
        names = keys_of(evaluation_id, "units", "owners", "attempts", "tries", *_BULK)
        return bool(
            await self._store.run(
                scripts.CONCLUDE,
                [key_of(evaluation_id, "job"), ACTIVE, *names],
                [evaluation_id, state.value, datetime.now(UTC).isoformat(), error, ttl_s],
            )
        )

    async def reopen(self, evaluation_id: str) -> None:
        """Open the report of a job that failed anew, or that was put off at once.

        Raises NotFoundError, FailedPreconditionError in another state.
        """
        job = await self.get(evaluation_id)
        names = [key_of(evaluation_id, "job"), ACTIVE, *keys_of(evaluation_id, "units", "owners")]
        if not await self._store.run(scripts.REOPEN, names, [evaluation_id]):
            raise FailedPreconditionError(
                f"evaluation {evaluation_id} is {job.state.value}; only one whose report failed can be retried"
            )

    async def delete(self, evaluation_id: str) -> None:
        """Forget a job that has ended; its files stay. Raises NotFoundError, FailedPreconditionError while it runs."""
        job = await self.get(evaluation_id)
        names = [key_of(evaluation_id, "job"), INDEX, *keys_of(evaluation_id, *_BULK)]
        if not await self._store.run(scripts.DELETE, names, [evaluation_id]):
            raise FailedPreconditionError(
                f"evaluation {evaluation_id} is {job.state.value}; cancel it first, then delete it"
            )


async def _parsed(fields: Mapping[str, str]) -> Evaluation:
    """Return a job; a long spec is read beside the event loop."""
    if len(fields["spec"]) < LONG_SPEC_CHARACTERS:
        return evaluation_of(fields)
    return await asyncio.to_thread(evaluation_of, fields)


def _not_found(evaluation_id: str) -> NotFoundError:
    return NotFoundError(
        f"there is no evaluation {evaluation_id!r}; ListEvaluations names those that exist",
        evaluation_id=evaluation_id,
    )
