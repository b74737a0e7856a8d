"""A worker's part: carry out one shard under its lease, and say whether it is done."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from infra.contract.errors import InternalError, UnavailableError
from infra.runtime.logs import get_logger
from orchestrator.evaluation import job_metrics
from orchestrator.evaluation.answering import (
    Answering,
    Answers,
    InterruptedSampleError,
    Patience,
    failed,
    not_asked,
    with_history,
)
from orchestrator.evaluation.dataset_files import changed_datasets
from orchestrator.evaluation.ledger import Ledger
from orchestrator.evaluation.ledger_types import Claim, Lease, Start
from orchestrator.evaluation.planning import chains
from orchestrator.evaluation.records import Record, Sample
from orchestrator.evaluation.spec import EvaluationSpec
from orchestrator.event_loop import in_background

log = get_logger(__name__)


@dataclass(frozen=True)
class ShardLimits:
    """Samples answered at once; seconds a try may take, full services are borne, until a shard is handed on, and a
    stopping worker's samples may go on."""

    concurrency: int = 8
    sample_timeout_s: float = 300.0
    patience_s: float = 300.0
    time_limit_s: float = 600.0
    stop_grace_s: float = 10.0


class Outcome(StrEnum):
    """How a worker leaves a shard: nothing to do; done; done as the last one; or to be sent again."""

    IDLE = "idle"
    DONE = "done"
    LAST = "last"
    UNFINISHED = "unfinished"


class ShardRun:
    """Carries out shards of jobs with a pipeline. One instance serves a worker; `run` may be called concurrently."""

    def __init__(self, ledger: Ledger, pipeline: Answers, roots: Sequence[Path], limits: ShardLimits) -> None:
        self._ledger = ledger
        self._answering = Answering(pipeline, roots, Patience(limits.sample_timeout_s, limits.patience_s))
        self._limits = limits

    async def run(self, evaluation_id: str, shard: str, stopping: asyncio.Event) -> Outcome:
        """Answer the samples of a shard that have no record yet. Once `stopping` is set no further one is begun."""
        owner = uuid.uuid4().hex
        claim = await self._ledger.claim(evaluation_id, shard, owner)
        if claim in (Claim.HELD, Claim.OVER):
            return Outcome.IDLE
        hold = _Hold(
            self._ledger,
            evaluation_id,
            shard,
            owner=owner,
            stopping=stopping,
            limits=self._limits,
        )
        async with in_background(hold.keep_up(), hold.hear_stop()):
            spec = (await self._ledger.get(evaluation_id)).spec
            samples = await self._ledger.shard(evaluation_id, shard)
            if claim is Claim.EXHAUSTED:
                await self._give_up(hold, samples)
            else:
                await self._note_changes(hold, spec, samples)
                await self._answer_all(hold, spec, samples)
        if hold.lost:
            return Outcome.IDLE
        if hold.cancelled or len(await self._ledger.recorded(evaluation_id, _keys(samples))) == len(samples):
            return Outcome.LAST if await self._ledger.close(evaluation_id, shard) else Outcome.DONE
        released = await self._ledger.release(evaluation_id, shard, owner)
        return Outcome.UNFINISHED if released else Outcome.IDLE

    async def _note_changes(self, hold: _Hold, spec: EvaluationSpec, samples: Sequence[Sample]) -> None:
        """Remember which datasets changed since the job was planned: its samples stay those that were planned."""
        names = {sample.dataset for sample in samples}
        hold.changed = await asyncio.to_thread(changed_datasets, spec, names, self._answering.roots)
        for name in sorted(hold.changed):
            log.warning("dataset changed since the job was planned", evaluation_id=hold.evaluation_id, dataset=name)

    async def _answer_all(self, hold: _Hold, spec: EvaluationSpec, samples: Sequence[Sample]) -> None:
        """First what was never begun, many at a time; then, one by one, what a worker may have died of.

        Samples are taken in chains: most are of one sample, those of the episode protocol are asked in order.
        """
        recorded = await self._ledger.recorded(hold.evaluation_id, _keys(samples))
        suspects = await self._ledger.begun(hold.evaluation_id, _keys(samples))
        left = [steps for steps in chains(samples) if not recorded.issuperset(_keys(steps))]
        calm = [steps for steps in left if suspects.isdisjoint(_keys(steps))]
        await self._answer_each(hold, spec, calm, self._limits.concurrency)
        await self._answer_each(hold, spec, [steps for steps in left if not suspects.isdisjoint(_keys(steps))], 1)

    async def _answer_each(
        self, hold: _Hold, spec: EvaluationSpec, waiting: Sequence[Sequence[Sample]], at_once: int
    ) -> None:
        left = iter(waiting)

        async def take() -> None:
            for steps in left:
                if hold.stop.is_set():
                    return
                await self._answer_in_order(hold, spec, steps)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(at_once, len(waiting))):
                group.create_task(take())

    async def _answer_in_order(self, hold: _Hold, spec: EvaluationSpec, steps: Sequence[Sample]) -> None:
        """Answer the steps of a chain that have no record yet, each with the answers before it.

        Where a step has no answer those after it have none either, and say so.
        """
        if len(steps) == 1:
            await self._answer(hold, spec, steps[0])
            return
        known = await self._ledger.records_of(hold.evaluation_id, _keys(steps))
        earlier: list[Record] = []
        for step in steps:
            record = known.get(step.key)
            if record is None and earlier and earlier[-1].error is not None:
                record = not_asked(with_history(step, earlier), earlier[-1])
                await self._record(hold.evaluation_id, hold.unit, record)
            elif record is None and not hold.stop.is_set():
                record = await self._answer(hold, spec, with_history(step, earlier))
            if record is None:
                return
            earlier.append(record)

    async def _answer(self, hold: _Hold, spec: EvaluationSpec, sample: Sample) -> Record | None:
        """Return what came of a sample; None where this worker has nothing to say of it."""
        start = await self._ledger.begin(hold.evaluation_id, hold.unit, hold.owner, sample.key)
        if start in (Start.LOST, Start.CANCELLED):
            hold.learn(Lease(start.value))
        elif start is Start.EXHAUSTED and not hold.lost:
            return await self._record(hold.evaluation_id, hold.unit, self._fatal(sample))
        elif start is Start.RECORDED:
            return (await self._ledger.records_of(hold.evaluation_id, [sample.key])).get(sample.key)
        elif start is Start.BEGUN:
            hold.begun.add(sample.key)
            try:
                with job_metrics.samples_running.track_inprogress():
                    answering = self._answering.record(sample, spec, hold.stop, hold.evaluation_id)
                    record = await hold.guard(answering)
            except InterruptedSampleError:
                await hold.give_back(sample.key)
                return None
            except asyncio.CancelledError:
                await hold.give_back(sample.key)
                raise
            hold.begun.discard(sample.key)
            record = replace(record, dataset_changed=sample.dataset in hold.changed)
            return await self._record(hold.evaluation_id, hold.unit, record)
        return None

    async def _give_up(self, hold: _Hold, samples: Sequence[Sample]) -> None:
        log.error("shard given up", evaluation_id=hold.evaluation_id, shard=hold.unit)
        for sample in samples:
            if not hold.lost:
                await self._record(hold.evaluation_id, hold.unit, self._fatal(sample))

    async def _record(self, evaluation_id: str, shard: str, record: Record) -> Record:
        if await self._ledger.record(evaluation_id, shard, record):
            job_metrics.samples_total.labels("failed" if record.error is not None else "answered").inc()
        return record

    def _fatal(self, sample: Sample) -> Record:
        deaths = self._ledger.limits.sample_attempts
        return failed(sample, InternalError(f"given up: the worker ended {deaths} times while it had this sample"))


class _Hold:
    """A unit's lease, kept up while `keep_up` runs. `stop` is set when no further sample may be begun.

    `begun` holds the keys of the samples under way whose try counts, `changed` the datasets that are not as planned.
    """

    def __init__(
        self,
        ledger: Ledger,
        evaluation_id: str,
        unit: str,
        *,
        owner: str,
        stopping: asyncio.Event,
        limits: ShardLimits,
    ) -> None:
        self.evaluation_id = evaluation_id
        self.unit = unit
        self.owner = owner
        self.stop = asyncio.Event()
        self.lost = False
        self.cancelled = False
        self.begun: set[str] = set()
        self.changed: set[str] = set()
        self._ledger = ledger
        self._stopping = stopping
        self._until = time.monotonic() + limits.time_limit_s
        self._stop_grace_s = limits.stop_grace_s
        self._under_way: set[asyncio.Task[Record]] = set()

    def learn(self, lease: Lease) -> None:
        """Take note of what the ledger said of the lease."""
        self.lost = self.lost or lease is Lease.LOST
        self.cancelled = self.cancelled or lease is Lease.CANCELLED
        if lease is not Lease.HELD:
            self.stop.set()

    async def guard(self, answering: Coroutine[Any, Any, Record]) -> Record:
        """Return what `answering` gives; InterruptedSampleError when it outlives the grace of a stop."""
        task = asyncio.create_task(answering)
        self._under_way.add(task)
        try:
            return await task
        except asyncio.CancelledError as error:
            if self._stopping.is_set() and task.cancelled():
                raise InterruptedSampleError from error
            raise
        finally:
            task.cancel()
            self._under_way.discard(task)

    async def give_back(self, key: str) -> None:
        """Uncount the try of a sample under way, if Redis can be reached: this worker has not died of it."""
        if key in self.begun:
            self.begun.discard(key)
            with suppress(UnavailableError):
                await self._ledger.abandon(self.evaluation_id, key)

    async def keep_up(self) -> None:
        """Renew the lease until it is lost; then give back the tries of the samples under way."""
        while not self.lost:
            await asyncio.sleep(self._ledger.limits.lease_s / 4)
            if time.monotonic() > self._until:
                self.stop.set()
            with suppress(UnavailableError):
                self.learn(await self._ledger.renew(self.evaluation_id, self.unit, self.owner))
        for key in tuple(self.begun):
            await self.give_back(key)

    async def hear_stop(self) -> None:
        """Wait for the worker to stop, then for the grace that samples under way have."""
        await self._stopping.wait()
        self.stop.set()
        await asyncio.sleep(self._stop_grace_s)
        for task in self._under_way:
            task.cancel()


def _keys(samples: Sequence[Sample]) -> list[str]:
    return [sample.key for sample in samples]
