"""A worker's part: carry out one shard under its lease, and say whether it is done."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path

from infra.contract.errors import InternalError
from infra.runtime.logs import get_logger
from orchestrator.evaluation.data.files import changed_datasets
from orchestrator.evaluation.planning import sample_chains
from orchestrator.evaluation.records import Record, Sample
from orchestrator.evaluation.spec import EvaluationSpec
from orchestrator.jobs import metrics as job_metrics
from orchestrator.jobs.event_loop import in_background
from orchestrator.jobs.ledger.ledger import Ledger
from orchestrator.jobs.ledger.types import Lease, Start, Taken
from orchestrator.jobs.worker.isolation import Isolation, StoppedWaitingError
from orchestrator.jobs.worker.sample_runner import (
    Answering,
    Answers,
    InterruptedSampleError,
    Patience,
    failed,
    not_asked,
    with_history,
)
from orchestrator.jobs.worker.shard_lease import Hold, ShardLimits

log = get_logger(__name__)


class Outcome(StrEnum):
    """How a worker leaves a shard: nothing to do; done; done as the last one; or to be done by another."""

    IDLE = "idle"
    DONE = "done"
    LAST = "last"
    UNFINISHED = "unfinished"


class ShardRun:
    """Carries out shards of jobs with a pipeline. One instance serves a worker; `run` may be called concurrently."""

    def __init__(
        self, ledger: Ledger, pipeline: Answers, roots: Sequence[Path], limits: ShardLimits, isolation: Isolation
    ) -> None:
        self._ledger = ledger
        self._samples = ledger.samples
        self._answering = Answering(pipeline, roots, Patience(limits.sample_timeout_s, limits.patience_s))
        self._limits = limits
        self._isolation = isolation
        self._owed: set[tuple[Taken, str]] = set()

    async def run(self, taken: Taken, stopping: asyncio.Event) -> Outcome:
        """Answer the samples of a shard that have no record yet. Once `stopping` is set no further one is begun."""
        await self._give_back_owed()
        hold = Hold(self._ledger, taken, self._limits, stopping, self._owed)
        try:
            async with in_background(hold.keep_up(), hold.hear_stop()):
                samples = await self._samples.shard(taken.evaluation_id, taken.unit)
                if taken.exhausted:
                    await self._give_up(hold, samples)
                else:
                    spec = (await self._ledger.get(taken.evaluation_id)).spec
                    await self._note_changes(hold, spec, samples)
                    await self._answer_all(hold, spec, samples)
        finally:
            await hold.give_back_all()
        if hold.lost:
            return Outcome.IDLE
        if hold.cancelled or len(await self._samples.recorded(taken.evaluation_id, _keys(samples))) == len(samples):
            return Outcome.LAST if await self._ledger.units.close(taken) else Outcome.DONE
        return Outcome.UNFINISHED if await self._ledger.units.release(taken) else Outcome.IDLE

    async def _give_back_owed(self) -> None:
        """Uncount tries that could not be given back while Redis was away."""
        for owed in tuple(self._owed):
            await self._samples.abandon(*owed)
            self._owed.discard(owed)

    async def _note_changes(self, hold: Hold, spec: EvaluationSpec, samples: Sequence[Sample]) -> None:
        """Remember which datasets changed since the job was planned: its samples stay those that were planned."""
        names = {sample.dataset for sample in samples}
        hold.changed = await asyncio.to_thread(changed_datasets, spec, names, self._answering.roots)
        for name in sorted(hold.changed):
            log.warning("dataset changed since the job was planned", evaluation_id=hold.evaluation_id, dataset=name)

    async def _answer_all(self, hold: Hold, spec: EvaluationSpec, samples: Sequence[Sample]) -> None:
        """First what was never begun, many at a time; then what a worker may have died of, each alone in this worker.

        Samples are taken in chains: most are of one sample, those of the episode protocol are asked in order.
        """
        recorded = await self._samples.recorded(hold.evaluation_id, _keys(samples))
        suspects = await self._samples.begun(hold.evaluation_id, _keys(samples))
        left = [steps for steps in sample_chains(samples) if not recorded.issuperset(_keys(steps))]
        for suspected in (False, True):
            some = [steps for steps in left if suspected != suspects.isdisjoint(_keys(steps))]
            await self._answer_each(hold, spec, some, suspects)

    async def _answer_each(
        self, hold: Hold, spec: EvaluationSpec, waiting: Sequence[Sequence[Sample]], suspects: Collection[str]
    ) -> None:
        left = iter(waiting)

        async def take() -> None:
            for steps in left:
                if hold.stop.is_set():
                    return
                await self._answer_in_order(hold, spec, steps, suspects)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._limits.concurrency, len(waiting))):
                group.create_task(take())

    async def _answer_in_order(
        self, hold: Hold, spec: EvaluationSpec, steps: Sequence[Sample], suspects: Collection[str]
    ) -> None:
        """Answer the steps of a chain that have no record yet, each with the answers before it.

        Where a step has no answer those after it have none either, and say so.
        """
        known = await self._samples.records_of(hold.evaluation_id, _keys(steps)) if len(steps) > 1 else {}
        earlier: list[Record] = []
        for step in steps:
            record = known.get(step.key)
            if record is None and earlier and earlier[-1].error is not None:
                record = await self._record(hold, not_asked(with_history(step, earlier), earlier[-1]))
            elif record is None:
                asked = with_history(step, earlier) if len(steps) > 1 else step
                record = await self._answer_beside(hold, spec, asked, alone=step.key in suspects)
            if record is None:
                return
            earlier.append(record)

    async def _answer_beside(self, hold: Hold, spec: EvaluationSpec, sample: Sample, *, alone: bool) -> Record | None:
        """Answer a sample beside others, or alone in this worker; None where the wait for that was cut short."""
        beside = self._isolation.alone(hold.stop) if alone else self._isolation.together(hold.stop)
        try:
            async with beside:
                return await self._answer(hold, spec, sample)
        except StoppedWaitingError:
            return None

    async def _answer(self, hold: Hold, spec: EvaluationSpec, sample: Sample) -> Record | None:
        """Return what came of a sample; None where this worker has nothing to say of it."""
        if hold.stop.is_set():
            return None
        start = await hold.insist(lambda: self._samples.begin(hold.taken, sample.key))
        if start in (Start.LOST, Start.CANCELLED):
            hold.learn(Lease(start.value))
        elif start is Start.EXHAUSTED and not hold.lost:
            return await self._record(hold, self._fatal(sample))
        elif start is Start.RECORDED:
            return (await self._samples.records_of(hold.evaluation_id, [sample.key])).get(sample.key)
        elif start is Start.BEGUN:
            hold.begun.add(sample.key)
            try:
                with job_metrics.samples_running.track_inprogress():
                    answering = self._answering.record(sample, spec, hold.stop, hold.evaluation_id)
                    record = await hold.guard(answering)
                return await self._record(hold, replace(record, dataset_changed=sample.dataset in hold.changed))
            except InterruptedSampleError:
                await hold.give_back(sample.key)
            except asyncio.CancelledError:
                await hold.give_back(sample.key)
                raise
        return None

    async def _give_up(self, hold: Hold, samples: Sequence[Sample]) -> None:
        """Record what is left of a shard that was taken again and again without one new record."""
        log.error("shard given up", evaluation_id=hold.evaluation_id, shard=hold.taken.unit)
        times = self._ledger.limits.unit_attempts
        error = InternalError(f"given up: the sample's shard was tried {times} times without one new record")
        recorded = await self._samples.recorded(hold.evaluation_id, _keys(samples))
        for sample in samples:
            if sample.key not in recorded and not hold.lost:
                await self._record(hold, failed(sample, error))

    async def _record(self, hold: Hold, record: Record) -> Record:
        """Store a record, and return it; where another worker's was there first, that one."""
        key = record.sample.key
        if await hold.insist(lambda: self._samples.record(hold.evaluation_id, hold.taken.unit, record)):
            job_metrics.samples_total.labels("failed" if record.error is not None else "answered").inc()
        else:
            record = (await self._samples.records_of(hold.evaluation_id, [key])).get(key, record)
        hold.begun.discard(key)
        return record

    def _fatal(self, sample: Sample) -> Record:
        deaths = self._ledger.limits.sample_attempts
        return failed(sample, InternalError(f"given up: the worker ended {deaths} times while it had this sample"))


def _keys(samples: Sequence[Sample]) -> list[str]:
    return [sample.key for sample in samples]
