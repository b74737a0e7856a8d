"""Small jobs for a ledger on a real Redis, and the parts around it that tests replace."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.evaluation.records import Sample
from orchestrator.evaluation.spec import DatasetSpec, EvaluatedStrategy, EvaluationSpec, PromptProtocol
from orchestrator.jobs.ledger.ledger import Ledger
from orchestrator.jobs.ledger.types import Claim, NewEvaluation

Run = Callable[[str, Sequence[str], Sequence[Any]], Awaitable[Any]]

STRATEGY = EvaluatedStrategy(AnswerStrategy.BASE)
SPEC = EvaluationSpec((DatasetSpec("gmail", "gmail.jsonl"),), (STRATEGY,))


def planned_sample(key: str) -> Sample:
    """Return a sample without images whose key is its episode."""
    return Sample(
        key=key,
        dataset="gmail",
        kind="",
        episode_id=key,
        cluster=key,
        protocol=PromptProtocol.STEP,
        step=0,
        step_count=1,
        strategy=STRATEGY,
        images=(),
        text="do it",
        truth="Wait for response",
    )


A, B, C, D = (planned_sample(key) for key in "abcd")
TWO_SHARDS = NewEvaluation(SPEC, [[A, B], [C, D]], "out")


def job_of(*shards: list[Sample]) -> NewEvaluation:
    """Return a job of these shards."""
    return NewEvaluation(SPEC, shards, "out")


def shard_of(evaluation_id: str, unit: str = "0") -> Claim:
    """Return a claim of a shard that no ledger knows: enough to record its samples."""
    return Claim(evaluation_id, unit, "some-worker")


async def claimed(ledger: Ledger) -> Claim:
    """Claim the unit that is most due; there must be one."""
    claim = await ledger.claim()
    assert claim is not None
    return claim


async def complete_shards(ledger: Ledger, count: int = 2) -> None:
    """Claim and complete shards, all of one job or of several."""
    for _ in range(count):
        await ledger.complete(await claimed(ledger))


def repeated(run: Run) -> Run:
    """Return `RedisStore.run` as a client calls it whose first reply was lost: twice."""

    async def run_twice(name: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        await run(name, keys, arguments)
        return await run(name, keys, arguments)

    return run_twice


class RecordingDispatcher:
    """Records for how many units workers were woken, call by call."""

    def __init__(self) -> None:
        self.woken: list[int] = []

    def wake(self, count: int) -> int:
        self.woken.append(count)
        return count
