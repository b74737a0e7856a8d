"""Samples and their records: each is begun by the holder of its shard, and recorded once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence

from orchestrator.evaluation.records import Record, Sample
from orchestrator.jobs.ledger import scripts
from orchestrator.jobs.ledger.store import RedisStore, key_of, keys_of
from orchestrator.jobs.ledger.types import LedgerLimits, Start, Taken

WRITTEN_AT_ONCE = 2048
_READ_AT_ONCE = 512
_UNPUBLISHED_TTL_S = 3600


class SampleBook:
    """The samples of all jobs. Raises UnavailableError when Redis stays away."""

    def __init__(self, store: RedisStore, limits: LedgerLimits) -> None:
        self._store = store
        self._limits = limits

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

    async def begin(self, taken: Taken, key: str) -> Start:
        """Ask to answer a sample of a held shard, counting one attempt."""
        return Start(
            await self._store.run(
                scripts.BEGIN,
                keys_of(taken.evaluation_id, "job", "owners", "records", "tries"),
                [taken.unit, taken.owner, key, self._limits.sample_attempts],
            )
        )

    async def abandon(self, taken: Taken, key: str) -> None:
        """Take back `begin`: the sample was not answered, and that was not its fault."""
        await self._store.run(scripts.ABANDON, keys_of(taken.evaluation_id, "tries"), [key, taken.owner])

    async def record(self, evaluation_id: str, unit: str, record: Record) -> bool:
        """Store what came of a sample; False, and nothing is counted, when it has its record already."""
        return bool(
            await self._store.run(
                scripts.RECORD,
                keys_of(evaluation_id, "job", "records", "tries", "attempts"),
                [record.sample.key, json.dumps(record.to_json()), int(record.error is not None), unit],
            )
        )

    async def records_of(self, evaluation_id: str, keys: Sequence[str]) -> dict[str, Record]:
        """Return the records of those of `keys` that have one."""
        if not keys:
            return {}
        found = await self._store.call(self._store.redis.hmget(key_of(evaluation_id, "records"), list(keys)))
        return {key: Record.from_json(json.loads(value)) for key, value in zip(keys, found, strict=True) if value}

    async def in_order(self, evaluation_id: str) -> list[Record]:
        """Return the records of a job in the order in which its samples were planned."""
        count = int(await self._store.call(self._store.redis.hlen(key_of(evaluation_id, "shards"))))
        return [record for shard in range(count) async for record in self._records_of_shard(evaluation_id, str(shard))]

    async def _records_of_shard(self, evaluation_id: str, shard: str) -> AsyncIterator[Record]:
        stored = await self._store.call(self._store.redis.hget(key_of(evaluation_id, "shards"), shard))
        keys = [sample["key"] for sample in json.loads(stored or "[]")]
        for start in range(0, len(keys), _READ_AT_ONCE):
            page = keys[start : start + _READ_AT_ONCE]
            found = await self._store.call(self._store.redis.hmget(key_of(evaluation_id, "records"), page))
            for record in await asyncio.to_thread(_parsed, found):
                yield record

    async def write_plan(self, evaluation_id: str, shards: Sequence[Sequence[Sample]]) -> None:
        """Write the plan of a job before the job exists; it goes by itself if the writer dies in between."""
        name = key_of(evaluation_id, "shards")
        start = 0
        while start < len(shards):
            stored, start = await asyncio.to_thread(_dumped, shards, start)
            await self._store.call(self._store.redis.hset(name, mapping=stored))
            await self._store.call(self._store.redis.expire(name, _UNPUBLISHED_TTL_S))

    async def _present(self, evaluation_id: str, name: str, keys: Sequence[str]) -> set[str]:
        if not keys:
            return set()
        values = await self._store.call(self._store.redis.hmget(key_of(evaluation_id, name), list(keys)))
        return {key for key, value in zip(keys, values, strict=True) if value is not None}


def _parsed(found: Sequence[str | None]) -> list[Record]:
    return [Record.from_json(json.loads(value)) for value in found if value]


def _dumped(shards: Sequence[Sequence[Sample]], start: int) -> tuple[dict[str, str], int]:
    """Return shards as they are stored, from `start` on, about WRITTEN_AT_ONCE samples, and the next shard."""
    stored: dict[str, str] = {}
    samples, end = 0, start
    while end < len(shards) and samples < WRITTEN_AT_ONCE:
        stored[str(end)] = json.dumps([sample.to_json() for sample in shards[end]])
        samples += len(shards[end])
        end += 1
    return stored, end
