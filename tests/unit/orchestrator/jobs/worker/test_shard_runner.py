"""Shards under a lease: samples begun, recorded and unclaimed; shards completed, released and given up."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest

from infra.contract.errors import UnavailableError
from infra.contract.generation import FinishReason, Generation, Timings, Usage
from infra.contract.retrieval import Selection
from orchestrator.answering.question import Answer, Question
from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.evaluation.records import Record, Sample
from orchestrator.evaluation.spec import DatasetSpec, EvaluatedStrategy, EvaluationSpec, PromptProtocol
from orchestrator.jobs.ledger.ledger import Ledger
from orchestrator.jobs.ledger.replies import Start
from orchestrator.jobs.ledger.store import RedisStore, key_of
from orchestrator.jobs.ledger.types import Claim, LedgerLimits, NewEvaluation
from orchestrator.jobs.worker import shard_lease
from orchestrator.jobs.worker.isolation import Isolation
from orchestrator.jobs.worker.shard_lease import ShardLimits
from orchestrator.jobs.worker.shard_runner import Outcome, ShardRunner
from tests.support.harness.job_ledger import claimed, shard_of

STRATEGY = EvaluatedStrategy(AnswerStrategy.BASE)
SPEC = EvaluationSpec((DatasetSpec("gmail", "gmail.jsonl"),), (STRATEGY,))
SAMPLE = Sample(
    key="a",
    dataset="gmail",
    kind="",
    episode_id="a",
    cluster="a",
    protocol=PromptProtocol.STEP,
    step=0,
    step_count=1,
    strategy=STRATEGY,
    images=(),
    text="do it",
    truth="Wait for response",
)


@dataclass
class SlowPipeline:
    """Answers with `text` once `end` is set."""

    text: str = "Wait for response"
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    end: asyncio.Event = field(default_factory=asyncio.Event)
    prompts: list[str] = field(default_factory=list)

    async def answer(self, question: Question, timeout_s: float | None = None) -> Answer:
        self.prompts.append(question.prompt.user_text)
        self.asked.set()
        await self.end.wait()
        generation = Generation(self.text, FinishReason.STOP, Usage(1, 0, 1), Timings(0, 0, 0))
        return Answer(generation, Selection(), "", 0.0, 0.1)


def runner_of(ledger: Ledger, pipeline: SlowPipeline, isolation: Isolation | None = None) -> ShardRunner:
    return ShardRunner(ledger, pipeline, [], ShardLimits(), isolation or Isolation())


@pytest.mark.parametrize("lost", [True, False], ids=["lost-lease", "cancellation"])
async def test_try_of_sample_under_way_is_unclaimed(store: RedisStore, lost: bool) -> None:
    ledger, pipeline = Ledger(store, LedgerLimits(lease_s=0.2)), SlowPipeline()
    evaluation_id = await ledger.jobs.publish(NewEvaluation(SPEC, [[SAMPLE]], "out"))
    run = asyncio.create_task(runner_of(ledger, pipeline).run(await claimed(ledger), asyncio.Event()))
    await pipeline.asked.wait()
    assert await ledger.samples.begun(evaluation_id, ["a"]) == {"a"}
    if lost:
        await store.redis.hset(key_of(evaluation_id, "owners"), "0", "another")
    else:
        run.cancel()
    async with asyncio.timeout(10):
        while await ledger.samples.begun(evaluation_id, ["a"]):
            await asyncio.sleep(0.01)
    pipeline.end.set()
    if lost:
        assert await run is Outcome.IDLE
    else:
        with pytest.raises(asyncio.CancelledError):
            await run


async def test_try_is_unclaimed_once_redis_is_back(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, pipeline = Ledger(store), SlowPipeline()
    evaluation_id = await ledger.jobs.publish(NewEvaluation(SPEC, [[SAMPLE], [replace(SAMPLE, key="b")]], "out"))
    runner = runner_of(ledger, pipeline)

    stopping = asyncio.Event()

    async def away(*_: object) -> None:
        stopping.set()  # A stopping worker does not wait for Redis.
        raise UnavailableError("Redis is away")

    pipeline.end.set()
    with monkeypatch.context() as patched:
        patched.setattr(ledger, "record", away)
        patched.setattr(ledger, "unclaim_sample", away)
        with pytest.raises(ExceptionGroup):
            await runner.run(await claimed(ledger), stopping)
    assert await ledger.samples.begun(evaluation_id, ["a"]) == {"a"}
    assert await runner.run(await claimed(ledger), asyncio.Event()) is Outcome.DONE
    assert await ledger.samples.begun(evaluation_id, ["a"]) == set()


async def test_sample_begun_while_worker_stops_is_not_asked(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, pipeline, stopping = Ledger(store), SlowPipeline(), asyncio.Event()
    evaluation_id = await ledger.jobs.publish(NewEvaluation(SPEC, [[SAMPLE]], "out"))
    begin_sample = ledger.begin_sample

    async def slow(claim: Claim, key: str) -> Start:
        start = await begin_sample(claim, key)
        stopping.set()
        await asyncio.sleep(0.1)
        return start

    monkeypatch.setattr(ledger, "begin_sample", slow)
    runner = ShardRunner(ledger, pipeline, [], ShardLimits(stop_grace_s=0), Isolation())
    async with asyncio.timeout(10):
        assert await runner.run(await claimed(ledger), stopping) is Outcome.UNFINISHED
    assert pipeline.prompts == []
    assert await ledger.samples.begun(evaluation_id, ["a"]) == set()


async def test_step_is_asked_with_stored_answer_and_not_with_late_one(store: RedisStore) -> None:
    steps = [
        replace(SAMPLE, key=str(step), step=step, step_count=2, protocol=PromptProtocol.EPISODE) for step in range(2)
    ]
    ledger, pipeline = Ledger(store), SlowPipeline("answer of B")
    evaluation_id = await ledger.jobs.publish(NewEvaluation(SPEC, [steps], "out"))
    run = asyncio.create_task(runner_of(ledger, pipeline).run(await claimed(ledger), asyncio.Event()))
    await pipeline.asked.wait()
    assert await ledger.record(shard_of(evaluation_id), Record(steps[0], answer="answer of A"))
    pipeline.end.set()
    await run
    assert pipeline.prompts[1].splitlines()[-1] == "answer of A"


async def test_exhausted_shard_ends_as_failed_samples(store: RedisStore) -> None:
    ledger = Ledger(store, LedgerLimits(unit_attempts=0))
    evaluation_id = await ledger.jobs.publish(NewEvaluation(SPEC, [[SAMPLE, replace(SAMPLE, key="b")]], "out"))
    await ledger.record(shard_of(evaluation_id), Record(SAMPLE, answer="done before"))
    claim = await claimed(ledger)
    assert claim.exhausted
    assert await runner_of(ledger, SlowPipeline()).run(claim, asyncio.Event()) is Outcome.LAST
    first, second = await ledger.samples.in_order(evaluation_id)
    assert first.answer == "done before"
    assert second.error is not None
    assert "tried 0 times without one new record" in second.error.message


async def test_suspect_sample_waits_until_no_other_is_under_way(store: RedisStore) -> None:
    ledger, pipeline, isolation = Ledger(store), SlowPipeline(), Isolation()
    await ledger.jobs.publish(NewEvaluation(SPEC, [[SAMPLE], [replace(SAMPLE, key="b", text="suspect")]], "out"))
    calm, suspected = await claimed(ledger), await claimed(ledger)
    await ledger.begin_sample(suspected, "b")
    runner = runner_of(ledger, pipeline, isolation)
    first = asyncio.create_task(runner.run(calm, asyncio.Event()))
    await pipeline.asked.wait()
    second = asyncio.create_task(runner.run(suspected, asyncio.Event()))
    await asyncio.sleep(0.2)
    assert pipeline.prompts == ["do it"]
    pipeline.end.set()
    assert {await first, await second} == {Outcome.DONE, Outcome.LAST}
    assert pipeline.prompts == ["do it", "suspect"]


async def test_answer_is_recorded_once_redis_is_back(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.jobs.worker.shard_lease.AWAY_PAUSE_S", 0.01)
    ledger, pipeline = Ledger(store), SlowPipeline()
    evaluation_id = await ledger.jobs.publish(NewEvaluation(SPEC, [[SAMPLE]], "out"))
    record, away = ledger.record, [UnavailableError("Redis is away")] * 3

    async def away_at_first(*arguments: Any) -> bool:
        if away:
            raise away.pop()
        return await record(*arguments)

    monkeypatch.setattr(ledger, "record", away_at_first)
    pipeline.end.set()
    assert await runner_of(ledger, pipeline).run(await claimed(ledger), asyncio.Event()) is Outcome.LAST
    assert pipeline.prompts == ["do it"]
    assert await ledger.samples.recorded(evaluation_id, ["a"]) == {"a"}


async def test_shard_beyond_its_time_limit_is_released_after_samples_under_way(
    store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(shard_lease, "time", SimpleNamespace(monotonic=lambda: now[0]))
    ledger, pipeline = Ledger(store, LedgerLimits(lease_s=0.2)), SlowPipeline()
    await ledger.jobs.publish(NewEvaluation(SPEC, [[SAMPLE, replace(SAMPLE, key="b", text="later")]], "out"))
    runner = ShardRunner(ledger, pipeline, [], ShardLimits(concurrency=1, time_limit_s=60), Isolation())
    run = asyncio.create_task(runner.run(await claimed(ledger), asyncio.Event()))
    await pipeline.asked.wait()
    now[0] = 61.0
    await asyncio.sleep(0.2)  # The time limit is checked at each renewal, three times a lease.
    pipeline.end.set()
    assert await run is Outcome.UNFINISHED
    assert pipeline.prompts == ["do it"]
