"""The plan of a job and the records of its samples, as the ledger stores them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from orchestrator.evaluation.records import Record, Sample
from orchestrator.jobs.ledger.store import RedisStore, key_of

# Both bound what one call makes Redis and the event loop hold at once; JSON is coded on a thread.
_SAMPLES_PER_WRITE = 2048
_RECORDS_PER_READ = 512
_UNPUBLISHED_TTL_S = 3600  # The plan of a job whose creator died before publishing it.


class SampleStore:
    """The samples and records of all jobs. Raises UnavailableError while Redis is away."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store

    async def write_plan(self, evaluation_id: str, shards: Sequence[Sequence[Sample]]) -> None:
        """Store the shards of a job that is not published yet; they expire if it never is."""
        key = key_of(evaluation_id, "shards")
        start = 0
        while start < len(shards):
            part = await asyncio.to_thread(_part_of_plan, shards, start)
            await self._store.call(self._store.redis.hset(key, mapping=part.stored))
            await self._store.call(self._store.redis.expire(key, _UNPUBLISHED_TTL_S))
            start = part.end

    async def delete_plan(self, evaluation_id: str) -> None:
        """Delete the shards of a job that is not published."""
        await self._store.call(self._store.redis.delete(key_of(evaluation_id, "shards")))

    async def shard(self, evaluation_id: str, shard: str) -> list[Sample]:
        """Return the samples of a shard."""
        stored = await self._store.call(self._store.redis.hget(key_of(evaluation_id, "shards"), shard))
        return [Sample.from_json(fields) for fields in json.loads(stored or "[]")]

    async def begun(self, evaluation_id: str, keys: Sequence[str]) -> set[str]:
        """Return those of `keys` that were begun and have no record: their worker died, perhaps because of them."""
        return await self._present(evaluation_id, "tries", keys)

    async def recorded(self, evaluation_id: str, keys: Sequence[str]) -> set[str]:
        """Return those of `keys` that have their record."""
        return await self._present(evaluation_id, "records", keys)

    async def records_of(self, evaluation_id: str, keys: Sequence[str]) -> dict[str, Record]:
        """Return the records of those of `keys` that have one."""
        if not keys:
            return {}
        values = await self._store.call(self._store.redis.hmget(key_of(evaluation_id, "records"), list(keys)))
        return {key: _record(value) for key, value in zip(keys, values, strict=True) if value}

    async def in_order(self, evaluation_id: str) -> list[Record]:
        """Return the records of a job in the order in which its samples were planned."""
        count = int(await self._store.call(self._store.redis.hlen(key_of(evaluation_id, "shards"))))
        return [record for shard in range(count) async for record in self._records_of_shard(evaluation_id, str(shard))]

    async def _records_of_shard(self, evaluation_id: str, shard: str) -> AsyncIterator[Record]:
        stored = await self._store.call(self._store.redis.hget(key_of(evaluation_id, "shards"), shard))
        keys = [sample["key"] for sample in json.loads(stored or "[]")]
        for start in range(0, len(keys), _RECORDS_PER_READ):
            page = keys[start : start + _RECORDS_PER_READ]
            values = await self._store.call(self._store.redis.hmget(key_of(evaluation_id, "records"), page))
            for record in await asyncio.to_thread(_records, values):
                yield record

    async def _present(self, evaluation_id: str, name: str, keys: Sequence[str]) -> set[str]:
        if not keys:
            return set()
        values = await self._store.call(self._store.redis.hmget(key_of(evaluation_id, name), list(keys)))
        return {key for key, value in zip(keys, values, strict=True) if value is not None}


@dataclass(frozen=True)
class _PlanPart:
    """Shards as they are stored, and the number of the shard after them."""

    stored: dict[str, str]
    end: int


def _part_of_plan(shards: Sequence[Sequence[Sample]], start: int) -> _PlanPart:
    stored: dict[str, str] = {}
    samples, end = 0, start
    while end < len(shards) and samples < _SAMPLES_PER_WRITE:
        stored[str(end)] = json.dumps([sample.to_json() for sample in shards[end]])
        samples += len(shards[end])
        end += 1
    return _PlanPart(stored, end)


def _records(values: Sequence[str | None]) -> list[Record]:
    return [_record(value) for value in values if value]


def _record(value: str) -> Record:
    return Record.from_json(json.loads(value))
