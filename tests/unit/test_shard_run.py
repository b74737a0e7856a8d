"""A shard whose worker lives on: what it had begun is not held against its samples."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from infra.runtime.embedded_redis import embedded_redis
from orchestrator.evaluation.hold import ShardLimits
from orchestrator.evaluation.isolation import Isolation
from orchestrator.evaluation.ledger import Ledger
from orchestrator.evaluation.ledger_store import RedisStore, key_of
from orchestrator.evaluation.ledger_types import LedgerLimits, NewEvaluation
from orchestrator.evaluation.records import Sample
from orchestrator.evaluation.shard_run import Outcome, ShardRun
from orchestrator.evaluation.spec import AnswerStrategy, DatasetSpec, EvaluatedStrategy, EvaluationSpec, Protocol
from orchestrator.pipeline import Answer, Question

STRATEGY = EvaluatedStrategy(AnswerStrategy.BASE)
SPEC = EvaluationSpec((DatasetSpec("gmail", "gmail.jsonl"),), (STRATEGY,))
SAMPLE = Sample(
    key="a",
    dataset="gmail",
    kind="",
    episode_id="a",
    cluster="a",
    protocol=Protocol.STEP,
    step=0,
    step_count=1,
    strategy=STRATEGY,
    images=(),
    text="do it",
    truth="Wait for response",
)


class SlowPipeline:
    """Answers nothing until `end` is set, and then fails."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.end = asyncio.Event()

    async def answer(self, question: Question, timeout_s: float | None = None) -> Answer:
        self.asked.set()
        await self.end.wait()
        raise AssertionError("the answer does not matter")


@pytest.mark.parametrize("lost", [True, False], ids=["lost lease", "cancellation"])
async def test_try_of_a_sample_under_way_is_given_back(tmp_path: Path, lost: bool) -> None:
    with embedded_redis(tmp_path) as url:
        async with RedisStore(url) as store:
            ledger, pipeline = Ledger(store, LedgerLimits(lease_s=0.2)), SlowPipeline()
            evaluation_id = await ledger.publish(NewEvaluation(SPEC, [[SAMPLE]], "out"))
            taken = await ledger.units.take()
            assert taken is not None
            shards = ShardRun(ledger, pipeline, [], ShardLimits(), Isolation())
            run = asyncio.create_task(shards.run(taken, asyncio.Event()))
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
