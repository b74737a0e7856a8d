"""A shard whose worker lives on: what it had begun is not held against its samples, and what is stored is the truth."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from infra.contract.errors import UnavailableError
from infra.contract.generation import FinishReason, Generation, Timings, Usage
from infra.contract.retrieval import Selection
from infra.runtime.embedded_redis import embedded_redis
from orchestrator.answering.question import Answer, Question
from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.evaluation.records import Record, Sample
from orchestrator.evaluation.spec import DatasetSpec, EvaluatedStrategy, EvaluationSpec, PromptProtocol
from orchestrator.jobs.job import EvaluationState
from orchestrator.jobs.ledger.ledger import Ledger
from orchestrator.jobs.ledger.store import RedisStore, key_of
from orchestrator.jobs.ledger.types import FINISH, LedgerLimits, NewEvaluation, Taken
from orchestrator.jobs.worker.isolation import Isolation
from orchestrator.jobs.worker.report_writer import Finish
from orchestrator.jobs.worker.shard_lease import ShardLimits
from orchestrator.jobs.worker.shard_run import Outcome, ShardRun

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
    """Answers nothing until `end` is set, and then says `said`."""

    said: str = "Wait for response"
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    end: asyncio.Event = field(default_factory=asyncio.Event)
    texts: list[str] = field(default_factory=list)

    async def answer(self, question: Question, timeout_s: float | None = None) -> Answer:
        self.texts.append(question.prompt.user_text)
        self.asked.set()
        await self.end.wait()
        generation = Generation(self.said, FinishReason.STOP, Usage(1, 0, 1), Timings(0, 0, 0))
        return Answer(generation, Selection(), "", 0.0, 0.1)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[RedisStore]:
    with embedded_redis(tmp_path) as url:
        async with RedisStore(url) as opened:
            yield opened


async def take(ledger: Ledger) -> Taken:
    taken = await ledger.units.take()
    assert taken is not None
    return taken


def shards_of(ledger: Ledger, pipeline: SlowPipeline, isolation: Isolation | None = None) -> ShardRun:
    return ShardRun(ledger, pipeline, [], ShardLimits(), isolation or Isolation())


@pytest.mark.parametrize("lost", [True, False], ids=["lost lease", "cancellation"])
async def test_try_of_a_sample_under_way_is_given_back(store: RedisStore, lost: bool) -> None:
    ledger, pipeline = Ledger(store, LedgerLimits(lease_s=0.2)), SlowPipeline()
    evaluation_id = await ledger.publish(NewEvaluation(SPEC, [[SAMPLE]], "out"))
    run = asyncio.create_task(shards_of(ledger, pipeline).run(await take(ledger), asyncio.Event()))
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


async def test_try_that_could_not_be_given_back_is_given_back_later(
    store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, pipeline = Ledger(store), SlowPipeline()
    evaluation_id = await ledger.publish(NewEvaluation(SPEC, [[SAMPLE], [replace(SAMPLE, key="b")]], "out"))
    shards = shards_of(ledger, pipeline)

    stopping = asyncio.Event()

    async def away(*_: object) -> None:
        stopping.set()  # A worker that stops waits for Redis no longer.
        raise UnavailableError("Redis is away")

    pipeline.end.set()
    with monkeypatch.context() as patched:
        patched.setattr(ledger.samples, "record", away)
        patched.setattr(ledger.samples, "abandon", away)
        with pytest.raises(ExceptionGroup):
            await shards.run(await take(ledger), stopping)
    assert await ledger.samples.begun(evaluation_id, ["a"]) == {"a"}
    assert await shards.run(await take(ledger), asyncio.Event()) is Outcome.DONE
    assert await ledger.samples.begun(evaluation_id, ["a"]) == set()


async def test_step_is_asked_with_the_answer_that_is_stored_and_not_with_a_late_one(store: RedisStore) -> None:
    steps = [
        replace(SAMPLE, key=str(step), step=step, step_count=2, protocol=PromptProtocol.EPISODE) for step in range(2)
    ]
    ledger, pipeline = Ledger(store), SlowPipeline("answer of B")
    evaluation_id = await ledger.publish(NewEvaluation(SPEC, [steps], "out"))
    run = asyncio.create_task(shards_of(ledger, pipeline).run(await take(ledger), asyncio.Event()))
    await pipeline.asked.wait()
    assert await ledger.samples.record(evaluation_id, "0", Record(steps[0], answer="answer of A"))
    pipeline.end.set()
    await run
    assert pipeline.texts[1].splitlines()[-1] == "answer of A"


async def test_shard_that_was_taken_too_often_ends_as_failed_samples_that_say_so(store: RedisStore) -> None:
    ledger = Ledger(store, LedgerLimits(unit_attempts=0))
    evaluation_id = await ledger.publish(NewEvaluation(SPEC, [[SAMPLE, replace(SAMPLE, key="b")]], "out"))
    await ledger.samples.record(evaluation_id, "0", Record(SAMPLE, answer="done before"))
    taken = await take(ledger)
    assert taken.exhausted
    assert await shards_of(ledger, SlowPipeline()).run(taken, asyncio.Event()) is Outcome.LAST
    first, second = await ledger.samples.in_order(evaluation_id)
    assert first.answer == "done before"
    assert second.error is not None
    assert "tried 0 times without one new record" in second.error.message


async def test_what_a_worker_may_have_died_of_waits_until_nothing_else_is_under_way(store: RedisStore) -> None:
    ledger, pipeline, isolation = Ledger(store), SlowPipeline(), Isolation()
    await ledger.publish(NewEvaluation(SPEC, [[SAMPLE], [replace(SAMPLE, key="b", text="suspect")]], "out"))
    calm, suspected = await take(ledger), await take(ledger)
    await ledger.samples.begin(suspected, "b")
    shards = shards_of(ledger, pipeline, isolation)
    first = asyncio.create_task(shards.run(calm, asyncio.Event()))
    await pipeline.asked.wait()
    second = asyncio.create_task(shards.run(suspected, asyncio.Event()))
    await asyncio.sleep(0.2)
    assert pipeline.texts == ["do it"]
    pipeline.end.set()
    assert {await first, await second} == {Outcome.DONE, Outcome.LAST}
    assert pipeline.texts == ["do it", "suspect"]


async def test_report_that_ended_its_workers_fails_the_job_without_another_try(
    store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(store, LedgerLimits(finish_attempts=0))
    evaluation_id = await ledger.publish(NewEvaluation(SPEC, [[SAMPLE]], "out"))
    await ledger.samples.record(evaluation_id, "0", Record(SAMPLE, answer="done"))
    await ledger.units.close(await take(ledger))
    report = await take(ledger)
    assert (report.unit, report.exhausted) == (FINISH, True)
    monkeypatch.setattr(Finish, "_write", None)
    await Finish(ledger, [], Isolation()).run(report, asyncio.Event())
    job = await ledger.get(evaluation_id)
    assert job.state is EvaluationState.FAILED
    assert "while it wrote the report" in job.error
    assert await ledger.samples.recorded(evaluation_id, ["a"]) == {"a"}


async def test_answer_is_recorded_once_redis_is_back(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.jobs.worker.shard_lease.AWAY_PAUSE_S", 0.01)
    ledger, pipeline = Ledger(store), SlowPipeline()
    evaluation_id = await ledger.publish(NewEvaluation(SPEC, [[SAMPLE]], "out"))
    record, away = ledger.samples.record, [UnavailableError("Redis is away")] * 3

    async def away_at_first(*arguments: Any) -> bool:
        if away:
            raise away.pop()
        return await record(*arguments)

    monkeypatch.setattr(ledger.samples, "record", away_at_first)
    pipeline.end.set()
    assert await shards_of(ledger, pipeline).run(await take(ledger), asyncio.Event()) is Outcome.LAST
    assert pipeline.texts == ["do it"]
    assert await ledger.samples.recorded(evaluation_id, ["a"]) == {"a"}


async def test_shard_that_takes_too_long_begins_no_further_sample_and_is_handed_on(store: RedisStore) -> None:
    ledger, pipeline = Ledger(store, LedgerLimits(lease_s=0.2)), SlowPipeline()
    await ledger.publish(NewEvaluation(SPEC, [[SAMPLE, replace(SAMPLE, key="b", text="later")]], "out"))
    shards = ShardRun(ledger, pipeline, [], ShardLimits(concurrency=1, time_limit_s=0.01), Isolation())
    run = asyncio.create_task(shards.run(await take(ledger), asyncio.Event()))
    await pipeline.asked.wait()
    await asyncio.sleep(0.2)
    pipeline.end.set()
    assert await run is Outcome.UNFINISHED
    assert pipeline.texts == ["do it"]
