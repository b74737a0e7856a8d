"""Runs one shard under its lease: answers the samples that have no record, and completes or releases it.

The way of a sample: `_run_sample` begins it under the lease (shard_lease.py); `_ask` has it answered (sample_runner.py)
and stores its record through the lease.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from infra.contract.errors import InternalError
from infra.runtime.logs import get_logger
from orchestrator.evaluation.data.files import changed_datasets
from orchestrator.evaluation.records import Record, Sample
from orchestrator.evaluation.sample_plan import sample_chains
from orchestrator.evaluation.spec import EvaluationSpec
from orchestrator.jobs import metrics as job_metrics
from orchestrator.jobs.ledger.ledger import Ledger
from orchestrator.jobs.ledger.replies import Start
from orchestrator.jobs.ledger.types import Claim
from orchestrator.jobs.worker.isolation import Isolation, StoppedWaitingError
from orchestrator.jobs.worker.sample_runner import (
    Answerer,
    InterruptedSampleError,
    RetryLimits,
    SampleRunner,
    failed,
    not_asked,
    with_history,
)
from orchestrator.jobs.worker.shard_lease import ShardLease, ShardLimits, ShardState

log = get_logger(__name__)

Chain = Sequence[Sample]
"""Samples asked in order: the steps of an episode under the episode protocol, else a single sample."""


class Outcome(StrEnum):
    """How a worker leaves a shard: lost to another; completed; completed as the job's last one; or released."""

    IDLE = "idle"
    DONE = "done"
    LAST = "last"
    UNFINISHED = "unfinished"


@dataclass(frozen=True)
class _Shard:
    """A shard under way. A worker may have died of the samples whose keys are `suspects`."""

    lease: ShardLease
    spec: EvaluationSpec
    changed_datasets: Collection[str]
    suspects: Collection[str]


class ShardRunner:
    """Runs shards with an answerer. One instance serves a worker; `run` may be called concurrently.

    Called on: the worker's event loop.
    """

    def __init__(
        self, ledger: Ledger, answerer: Answerer, roots: Sequence[Path], limits: ShardLimits, isolation: Isolation
    ) -> None:
        self._ledger = ledger
        self._roots = roots
        self._sample_runner = SampleRunner(answerer, roots, RetryLimits(limits.sample_timeout_s, limits.patience_s))
        self._limits = limits
        self._isolation = isolation
        self._unreturned_tries: set[tuple[Claim, str]] = set()

    async def run(self, claim: Claim, stopping: asyncio.Event) -> Outcome:
        """Answer the samples of a shard that have no record. Once `stopping` is set no further one is begun."""
        lease = ShardLease(self._ledger, claim, self._limits, stopping)
        try:
            async with lease.held():
                await self._return_tries()
                samples = await self._ledger.samples.shard(claim.evaluation_id, claim.unit)
                if claim.exhausted:
                    await self._give_up(lease, samples)
                else:
                    await self._answer(lease, samples)
        finally:
            self._unreturned_tries |= lease.unreturned_tries
        return await self._leave(lease, samples)

    async def _answer(self, lease: ShardLease, samples: Sequence[Sample]) -> None:
        """Answer the samples that were never begun first, then those that a worker may have died of, each alone."""
        evaluation_id = lease.claim.evaluation_id
        spec = (await self._ledger.jobs.get(evaluation_id)).spec
        changed = await self._changed_datasets(evaluation_id, spec, samples)
        recorded = await self._ledger.samples.recorded(evaluation_id, _keys(samples))
        suspects = await self._ledger.samples.begun(evaluation_id, _keys(samples))
        shard = _Shard(lease, spec, changed, suspects)
        todo = [chain for chain in sample_chains(samples) if not recorded.issuperset(_keys(chain))]
        await self._run_chains(shard, [chain for chain in todo if suspects.isdisjoint(_keys(chain))])
        await self._run_chains(shard, [chain for chain in todo if not suspects.isdisjoint(_keys(chain))])

    async def _run_chains(self, shard: _Shard, todo: Sequence[Chain]) -> None:
        slots = asyncio.Semaphore(self._limits.concurrency)
        async with asyncio.TaskGroup() as group:
            for chain in todo:
                await slots.acquire()  # Released when the chain's task ends.
                if not shard.lease.is_active:
                    return
                group.create_task(self._run_chain(shard, chain)).add_done_callback(lambda _: slots.release())

    async def _run_chain(self, shard: _Shard, chain: Chain) -> None:
        """Answer the steps of a chain in order, each with the answers before it, up to the first that is left open."""
        evaluation_id = shard.lease.claim.evaluation_id
        known = await self._ledger.samples.records_of(evaluation_id, _keys(chain)) if len(chain) > 1 else {}
        earlier: list[Record] = []
        for step in chain:
            record = known.get(step.key)
            if record is None and earlier and earlier[-1].error is not None:
                record = await shard.lease.record(not_asked(with_history(step, earlier), earlier[-1]))
            elif record is None:
                record = await self._run_sample(shard, with_history(step, earlier) if len(chain) > 1 else step)
            if record is None:
                return
            earlier.append(record)

    async def _run_sample(self, shard: _Shard, sample: Sample) -> Record | None:
        """Answer a sample and return its record; None if it is left to another run of the shard."""
        lease = shard.lease
        isolate = self._isolation.alone if sample.key in shard.suspects else self._isolation.together
        try:
            async with isolate(lease.draining):
                start = await lease.begin(sample.key) if lease.is_active else None
                match start:
                    case Start.BEGUN if lease.is_active:
                        return await self._ask(shard, sample)
                    case Start.BEGUN:  # The lease began to drain during the call.
                        await lease.unclaim(sample.key)
                    case Start.RECORDED:
                        key, evaluation_id = sample.key, lease.claim.evaluation_id
                        return (await self._ledger.samples.records_of(evaluation_id, [key])).get(key)
                    case Start.EXHAUSTED if lease.state is not ShardState.LOST:
                        return await lease.record(failed(sample, self._fatal_error()))
        except StoppedWaitingError:
            pass
        return None

    async def _ask(self, shard: _Shard, sample: Sample) -> Record | None:
        """Answer a sample that was begun, and record it; unclaim it if the worker stops first."""
        lease = shard.lease
        try:
            with job_metrics.samples_running.track_inprogress():
                evaluation_id = lease.claim.evaluation_id
                answering = self._sample_runner.run(sample, shard.spec, lease.draining, evaluation_id)
                record = await lease.answer(answering)
            return await lease.record(replace(record, dataset_changed=sample.dataset in shard.changed_datasets))
        except InterruptedSampleError:
            await lease.unclaim(sample.key)
            return None
        except asyncio.CancelledError:
            await lease.unclaim(sample.key)
            raise

    async def _leave(self, lease: ShardLease, samples: Sequence[Sample]) -> Outcome:
        claim = lease.claim
        if lease.state is ShardState.LOST:
            return Outcome.IDLE
        recorded = await self._ledger.samples.recorded(claim.evaluation_id, _keys(samples))
        if lease.state is ShardState.CANCELLED or len(recorded) == len(samples):
            return Outcome.LAST if await self._ledger.complete(claim) else Outcome.DONE
        return Outcome.UNFINISHED if await self._ledger.release(claim) else Outcome.IDLE

    async def _give_up(self, lease: ShardLease, samples: Sequence[Sample]) -> None:
        """Record the samples left of a shard that was claimed again and again without one new record as failed."""
        claim = lease.claim
        log.error("shard_given_up", evaluation_id=claim.evaluation_id, shard=claim.unit, attempts=claim.attempts)
        attempts = self._ledger.limits.unit_attempts
        error = InternalError(f"given up: the sample's shard was tried {attempts} times without one new record")
        recorded = await self._ledger.samples.recorded(claim.evaluation_id, _keys(samples))
        for sample in samples:
            if sample.key not in recorded and lease.state is not ShardState.LOST:
                await lease.record(failed(sample, error))

    async def _changed_datasets(
        self, evaluation_id: str, spec: EvaluationSpec, samples: Sequence[Sample]
    ) -> Collection[str]:
        """Return the datasets that changed since the job was planned. Their samples are answered as planned."""
        names = {sample.dataset for sample in samples}
        changed = await asyncio.to_thread(changed_datasets, spec, names, self._roots)
        for name in sorted(changed):
            log.warning("dataset_changed", evaluation_id=evaluation_id, dataset=name)
        return changed

    async def _return_tries(self) -> None:
        """Unclaim the samples that could not be unclaimed while Redis was away."""
        for claim, key in tuple(self._unreturned_tries):
            await self._ledger.unclaim_sample(claim, key)
            self._unreturned_tries.discard((claim, key))

    def _fatal_error(self) -> InternalError:
        deaths = self._ledger.limits.sample_attempts
        return InternalError(f"given up: the worker ended {deaths} times while it had this sample")


def _keys(samples: Sequence[Sample]) -> list[str]:
    return [sample.key for sample in samples]
