"""The jobs of the ledger: published, read, listed, cancelled, ended, deleted."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime

from infra.contract.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from orchestrator.evaluation.job import Evaluation, EvaluationPage, EvaluationState
from orchestrator.evaluation.spec import EvaluationSpec
from orchestrator.jobs.ledger.job_codec import (
    PROGRESS_FIELDS,
    check_same_spec,
    digest,
    from_fields,
    to_fields,
    with_progress,
)
from orchestrator.jobs.ledger.replies import Cancellation, ConcludeReply, DeleteReply, PublishReply, RetryReply
from orchestrator.jobs.ledger.sample_store import SampleStore
from orchestrator.jobs.ledger.store import ACTIVE, INDEX, RedisStore, key_of, keys_of, request_key
from orchestrator.jobs.ledger.types import JobDetails, NewEvaluation

MAX_PAGE_CHARACTERS = 16 * 2**20  # A page of specs stays below a quarter of the default message limit, 64 MiB.
_LONG_SPEC_CHARACTERS = 50_000  # Longer specs are parsed on a thread, so that the event loop stays free.
_BULK = ("shards", "records")


class JobStore:
    """The jobs in Redis. Raises UnavailableError while Redis is away."""

    def __init__(self, store: RedisStore, samples: SampleStore, record_ttl_s: int) -> None:
        self._store = store
        self._samples = samples
        self._record_ttl_s = record_ttl_s

    async def publish(self, job: NewEvaluation, request_id: str = "", asked: EvaluationSpec | None = None) -> str:
        """Store a job and return its id, or the id of the job that `request_id` started before.

        `asked` is the spec as the request gave it, if it is not that of the job.

        Raises:
            AlreadyExistsError: the request id started a job of another spec.
        """
        asked = asked or job.spec
        evaluation_id = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:8]}"
        request = request_key(request_id or evaluation_id)
        await self._samples.write_plan(evaluation_id, job.shards)
        fields = to_fields(evaluation_id, job, request)
        keys = [request, *keys_of(evaluation_id, "job", "shards", "units"), INDEX, ACTIVE]
        arguments = [evaluation_id, digest(asked), len(job.shards), *(part for pair in fields.items() for part in pair)]
        reply, *known = await self._store.run("publish", keys, arguments)
        if PublishReply(reply) is PublishReply.PUBLISHED:
            return evaluation_id
        await self._samples.delete_plan(evaluation_id)
        known_id, known_digest = known
        check_same_spec(known_id, known_digest, asked, request_id)
        return str(known_id)

    async def find_request(self, request_id: str, asked: EvaluationSpec) -> str | None:
        """Return the id of the job that `request_id` started, if any.

        Raises:
            AlreadyExistsError: it is a job of another spec.
        """
        known = await self._store.call(self._store.redis.get(request_key(request_id))) if request_id else None
        if not known:
            return None
        evaluation_id, known_digest = known.split(" ")
        check_same_spec(evaluation_id, known_digest, asked, request_id)
        return str(evaluation_id)

    async def get(self, evaluation_id: str) -> Evaluation:
        """Return a job. Raises NotFoundError."""
        fields = await self._store.call(self._store.redis.hgetall(key_of(evaluation_id, "job")))
        if not fields:
            raise _not_found(evaluation_id)
        return await _parsed(fields)

    async def refresh(self, job: Evaluation) -> Evaluation:
        """Return a job with its current progress, without reading its spec again. Raises NotFoundError."""
        values = await self._store.call(
            self._store.redis.hmget(key_of(job.evaluation_id, "job"), list(PROGRESS_FIELDS))
        )
        fields = {name: value for name, value in zip(PROGRESS_FIELDS, values, strict=True) if value is not None}
        if not fields:
            raise _not_found(job.evaluation_id)
        return with_progress(job, fields)

    async def details(self, evaluation_id: str) -> JobDetails:
        """Return what the report of a job needs in addition to the job."""
        bad_rows, provenance = await self._store.call(
            self._store.redis.hmget(key_of(evaluation_id, "job"), ["bad_row_list", "provenance"])
        )
        return JobDetails(json.loads(bad_rows or "[]"), json.loads(provenance or "{}"))

    async def page(self, page_size: int, after: str = "") -> EvaluationPage:
        """Return a page of jobs, newest first, from the one after the job `after`. Long specs make a page shorter.

        Raises:
            InvalidArgumentError: `after` is not a job.
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
        """Cancel a job: no further sample is begun. A job that has ended stays as it is. Raises NotFoundError."""
        await self.get(evaluation_id)
        names = keys_of(evaluation_id, "job", "units", "owners", "attempts", "tries")
        keys = [*names, ACTIVE, *keys_of(evaluation_id, *_BULK)]
        arguments = [evaluation_id, datetime.now(UTC).isoformat(), self._record_ttl_s]
        return Cancellation(await self._store.run("cancel", keys, arguments))

    async def is_cancelled(self, evaluation_id: str) -> bool:
        """Return whether a job was cancelled."""
        return bool(await self._store.call(self._store.redis.hexists(key_of(evaluation_id, "job"), "cancelled")))

    async def conclude(self, evaluation_id: str, state: EvaluationState, error: str = "") -> bool:
        """End a job; return False if it had ended before.

        Its counters stay; its plan and records expire, except those of a failed job, which has no report: they stay
        until it is retried or deleted.
        """
        ttl_s = 0 if state is EvaluationState.FAILED else self._record_ttl_s
        names = keys_of(evaluation_id, "units", "owners", "attempts", "tries", *_BULK)
        keys = [key_of(evaluation_id, "job"), ACTIVE, *names]
        arguments = [evaluation_id, state.value, datetime.now(UTC).isoformat(), error, ttl_s]
        return ConcludeReply(await self._store.run("conclude", keys, arguments)) is ConcludeReply.CONCLUDED

    async def retry_report(self, evaluation_id: str) -> None:
        """Open the report of a failed job again, or make a postponed report due at once.

        Raises:
            NotFoundError: there is no such job.
            FailedPreconditionError: the job has no failed or postponed report.
        """
        job = await self.get(evaluation_id)
        keys = [key_of(evaluation_id, "job"), ACTIVE, *keys_of(evaluation_id, "units", "owners")]
        if RetryReply(await self._store.run("retry_report", keys, [evaluation_id])) is RetryReply.NOT_FAILED:
            raise FailedPreconditionError(
                f"evaluation {evaluation_id} is {job.state.value}; only one whose report failed can be retried"
            )

    async def delete(self, evaluation_id: str) -> None:
        """Delete a job that has ended; its files stay.

        Raises:
            NotFoundError: there is no such job.
            FailedPreconditionError: the job has not ended.
        """
        job = await self.get(evaluation_id)
        keys = [key_of(evaluation_id, "job"), INDEX, *keys_of(evaluation_id, *_BULK)]
        if DeleteReply(await self._store.run("delete", keys, [evaluation_id])) is DeleteReply.RUNNING:
            raise FailedPreconditionError(
                f"evaluation {evaluation_id} is {job.state.value}; cancel it first, then delete it"
            )


async def _parsed(fields: Mapping[str, str]) -> Evaluation:
    if len(fields["spec"]) < _LONG_SPEC_CHARACTERS:
        return from_fields(fields)
    return await asyncio.to_thread(from_fields, fields)


def _not_found(evaluation_id: str) -> NotFoundError:
    return NotFoundError(
        f"there is no evaluation {evaluation_id!r}; it may have been deleted", evaluation_id=evaluation_id
    )
