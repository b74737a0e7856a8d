"""The ledger: what every job consists of and how far it is, in Redis. It is the truth; Celery only moves work."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from infra.contract.errors import InvalidArgumentError, NotFoundError
from orchestrator.evaluation import ledger_scripts as scripts
from orchestrator.evaluation.job import Evaluation, EvaluationPage, EvaluationState
from orchestrator.evaluation.ledger_fields import digest, evaluation_of, same_job
from orchestrator.evaluation.ledger_presence import Presence
from orchestrator.evaluation.ledger_store import ACTIVE, INDEX, RedisStore, key_of, keys_of, request_key
from orchestrator.evaluation.ledger_types import Cancellation, Claim, Lease, LedgerLimits, NewEvaluation, Start
from orchestrator.evaluation.records import Record, Sample
from orchestrator.evaluation.spec import EvaluationSpec

_UNPUBLISHED_TTL_S = 3600
_WRITE_BATCH = 64
_BULK = ("shards", "records")


class Ledger:
    """Every job's spec, plan, records and counters. Raises UnavailableError when Redis stays away."""

    def __init__(self, store: RedisStore, limits: LedgerLimits | None = None) -> None:
        self.limits = limits or LedgerLimits()
        self.workers = Presence(store, self.limits.lease_s)
        self._store = store

    async def publish(self, job: NewEvaluation, request_id: str = "") -> str:
        """Store a job and return its id; the id of the job of that request id when there is one.

        Raises AlreadyExistsError when the request id belongs to another job.
        """
        evaluation_id = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:8]}"
        request = request_key(request_id or evaluation_id)
        spec = json.dumps(job.spec.to_json(), sort_keys=True)
        await self._write_shards(evaluation_id, job.shards)
        fields = {
            "id": evaluation_id,
            "request": request,
            "spec": spec,
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
            [
                request,
                *keys_of(evaluation_id, "job", "shards", "units"),
                INDEX,
                ACTIVE,
            ],
            [
                evaluation_id,
                digest(spec),
                len(job.shards),
                self.limits.resend_s,
                *(part for pair in fields.items() for part in pair),
            ],
        )
        if not known or known.split(" ")[0] == evaluation_id:  # The latter: sent again as its first reply was lost.
            return evaluation_id
        await self._store.call(self._store.redis.delete(*keys_of(evaluation_id, "shards")))
        return same_job(known, job.spec, request_id)

    async def find_request(self, request_id: str, spec: EvaluationSpec) -> str | None:
        """Return the job that was published under `request_id`, if any; AlreadyExistsError when it is another."""
        known = await self._store.call(self._store.redis.get(request_key(request_id))) if request_id else None
        return same_job(known, spec, request_id) if known else None

    async def get(self, evaluation_id: str) -> Evaluation:
        """Return a job as it stands. Raises NotFoundError."""
        fields = await self._store.call(self._store.redis.hgetall(key_of(evaluation_id, "job")))
        if not fields:
            raise NotFoundError(
                f"there is no evaluation {evaluation_id!r}; ListEvaluations names those that exist",
                evaluation_id=evaluation_id,
            )
        return evaluation_of(fields)

    async def details(self, evaluation_id: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Return the bad rows of a job's datasets, and what else is needed to repeat it."""
        bad_rows, provenance = await self._store.call(
            self._store.redis.hmget(key_of(evaluation_id, "job"), ["bad_row_list", "provenance"])
        )
        return json.loads(bad_rows or "[]"), json.loads(provenance or "{}")

    async def page(self, page_size: int, after: str = "") -> EvaluationPage:
        """Return a page of jobs, newest first, beginning after the job `after`. Raises InvalidArgumentError."""
        offset = 0
        if after:
            rank = await self._store.call(self._store.redis.zrevrank(INDEX, after))
            if rank is None:
                raise InvalidArgumentError("page_token", f"{after[:40]!r} is not a token that this server gave out")
            offset = int(rank) + 1
        ids = await self._store.call(self._store.redis.zrevrange(INDEX, offset, offset + page_size))
        jobs = [await self._store.call(self._store.redis.hgetall(key_of(each, "job"))) for each in ids[:page_size]]
        token = ids[page_size - 1] if len(ids) > page_size else ""
        return EvaluationPage(tuple(evaluation_of(fields) for fields in jobs if fields), token)

    async def active(self) -> list[str]:
        """Return the ids of the jobs that have not ended."""
        return sorted(await self._store.call(self._store.redis.smembers(ACTIVE)))

    async def cancel(self, evaluation_id: str) -> Cancellation:
        """Stop a job: no further sample is begun. Does nothing to a job that has ended."""
        await self.get(evaluation_id)
        return Cancellation(
            str(
                await self._store.run(
                    scripts.CANCEL,
                    [*keys_of(evaluation_id, "job", "units", "owners"), ACTIVE, *keys_of(evaluation_id, *_BULK)],
                    [evaluation_id, datetime.now(UTC).isoformat(), self.limits.resend_s, self.limits.record_ttl_s],
                )
            )
        )

    async def is_cancelled(self, evaluation_id: str) -> bool:
        """Whether somebody asked to stop the job."""
        return bool(await self._store.call(self._store.redis.hexists(key_of(evaluation_id, "job"), "cancelled")))

    async def conclude(self, evaluation_id: str, state: EvaluationState, error: str = "") -> bool:
        """End a job; whether this call did it. Its counters stay, its plan and records for a while.

        A failed job has no report: its records are all there is of it, and stay longer.
        """
        ttl_s = self.limits.failed_ttl_s if state is EvaluationState.FAILED else self.limits.record_ttl_s
        return bool(
            await self._store.run(
                scripts.CONCLUDE,
                [
                    key_of(evaluation_id, "job"),
                    ACTIVE,
                    *keys_of(evaluation_id, "units", "owners", "attempts", "tries", *_BULK),
                ],
                [evaluation_id, state.value, datetime.now(UTC).isoformat(), error, ttl_s],
            )
        )

    async def claim(self, evaluation_id: str, unit: str, owner: str) -> Claim:
        """Ask to hold a unit for lease_s, counting one attempt."""
        attempts = self.limits.finish_attempts if unit == scripts.FINISH else self.limits.unit_attempts
        return Claim(
            await self._store.run(
                scripts.CLAIM,
                keys_of(evaluation_id, "job", "units", "owners", "attempts"),
                [unit, owner, self.limits.lease_s, attempts],
            )
        )

    async def renew(self, evaluation_id: str, unit: str, owner: str) -> Lease:
        """Hold a unit for another lease_s."""
        return Lease(
            await self._store.run(
                scripts.RENEW, keys_of(evaluation_id, "job", "units", "owners"), [unit, owner, self.limits.lease_s]
            )
        )

    async def release(
        self, evaluation_id: str, unit: str, owner: str, *, delay_s: float = 0.0, count_attempt: bool = False
    ) -> bool:
        """Give a unit back undone, due again after `delay_s`; False when it is not held by `owner` any more."""
        return bool(
            await self._store.run(
                scripts.RELEASE,
                keys_of(evaluation_id, "units", "owners", "attempts"),
                [unit, owner, delay_s, 0 if count_attempt else 1],
            )
        )

    async def close(self, evaluation_id: str, unit: str) -> bool:
        """Take a unit off the list; whether it was the last shard, so that "finish" is open now."""
        return bool(
            await self._store.run(
                scripts.CLOSE, keys_of(evaluation_id, "job", "units", "owners"), [unit, self.limits.resend_s]
            )
        )

    async def overdue(self, evaluation_id: str, *, queue_empty: bool) -> list[str]:
        """Return the units to send again: the holder fell silent, or the message was lost."""
        units: list[str] = await self._store.run(
            scripts.OVERDUE,
            keys_of(evaluation_id, "job", "units", "owners"),
            [int(queue_empty), self.limits.resend_s],
        )
        return units

    async def held(self, evaluation_id: str) -> int:
        """Return how many units of a job a worker has under way."""
        return int(await self._store.call(self._store.redis.hlen(key_of(evaluation_id, "owners"))))

    async def queue_length(self, queue: str) -> int:
        """Return how many messages wait in a Celery queue."""
        return int(await self._store.call(self._store.redis.llen(queue)))

    async def shard(self, evaluation_id: str, shard: str) -> list[Sample]:
        """Return the samples of a shard."""
        stored = await self._store.call(self._store.redis.hget(key_of(evaluation_id, "shards"), shard))
        return [Sample.from_json(each) for each in json.loads(stored or "[]")]

    async def begun(self, evaluation_id: str, keys: Sequence[str]) -> set[str]:
        """Return those of `keys` that were begun before and have no record: their worker died, perhaps of them."""
        return await self._present(evaluation_id, "tries", keys)

    async def recorded(self, evaluation_id: str, keys: Sequence[str]) -> set[str]:
        """Return those of `keys` that have their record."""
        return await self._present(evaluation_id, "records", keys)

    async def begin(self, evaluation_id: str, unit: str, owner: str, key: str) -> Start:
        """Ask to answer a sample of a held unit, counting one attempt."""
        return Start(
            await self._store.run(
                scripts.BEGIN,
                keys_of(evaluation_id, "job", "owners", "records", "tries"),
                [unit, owner, key, self.limits.sample_attempts],
            )
        )

    async def abandon(self, evaluation_id: str, key: str) -> None:
        """Take back `begin`: the sample was not answered, and that was not its fault."""
        await self._store.call(self._store.redis.hincrby(key_of(evaluation_id, "tries"), key, -1))

    async def record(self, evaluation_id: str, unit: str, record: Record) -> bool:
        """Store what came of a sample; False, and nothing is counted, when it has its record already."""
        return bool(
            await self._store.run(
                scripts.RECORD,
                keys_of(evaluation_id, "job", "records", "tries", "attempts"),
                [record.sample.key, json.dumps(record.to_json()), int(record.error is not None), unit],
            )
        )

    async def records(self, evaluation_id: str) -> dict[str, Record]:
        """Return the records of a job by sample key."""
        found: dict[str, Record] = {}
        cursor = 0
        while True:
            cursor, page = await self._store.call(
                self._store.redis.hscan(key_of(evaluation_id, "records"), cursor, count=512)
            )
            found.update({key: Record.from_json(json.loads(value)) for key, value in page.items()})
            if cursor == 0:
                return found

    async def records_of(self, evaluation_id: str, keys: Sequence[str]) -> dict[str, Record]:
        """Return the records of those of `keys` that have one."""
        if not keys:
            return {}
        found = await self._store.call(self._store.redis.hmget(key_of(evaluation_id, "records"), list(keys)))
        return {key: Record.from_json(json.loads(value)) for key, value in zip(keys, found, strict=True) if value}

    async def keys_in_order(self, evaluation_id: str) -> list[str]:
        """Return the keys of all samples as they were planned."""
        shards = await self._store.call(self._store.redis.hgetall(key_of(evaluation_id, "shards")))
        return [
            sample["key"]
            for _, shard in sorted(shards.items(), key=lambda item: int(item[0]))
            for sample in json.loads(shard)
        ]

    async def _present(self, evaluation_id: str, name: str, keys: Sequence[str]) -> set[str]:
        if not keys:
            return set()
        values = await self._store.call(self._store.redis.hmget(key_of(evaluation_id, name), list(keys)))
        return {key for key, value in zip(keys, values, strict=True) if value not in (None, "0")}

    async def _write_shards(self, evaluation_id: str, shards: Sequence[Sequence[Sample]]) -> None:
        """Write the plan before the job exists; it goes by itself if the writer dies in between."""
        name = key_of(evaluation_id, "shards")
        for start in range(0, len(shards), _WRITE_BATCH):
            batch = enumerate(shards[start : start + _WRITE_BATCH], start)
            stored = {str(index): json.dumps([sample.to_json() for sample in shard]) for index, shard in batch}
            await self._store.call(self._store.redis.hset(name, mapping=stored))
            await self._store.call(self._store.redis.expire(name, _UNPUBLISHED_TTL_S))
