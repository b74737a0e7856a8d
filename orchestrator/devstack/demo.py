"""The demo: the whole system on the demo world, as a user would do it, over gRPC from outside the tiers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from infra.contract.adapter import Adapter
from infra.contract.composition import FusionMethod
from infra.contract.errors import UnavailableError
from infra.contract.retrieval import RetrievalOptions, Selection, Weighting
from orchestrator.answering.question import Answer, Question
from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.clients.answer import AnswerClient
from orchestrator.clients.evaluation import EvaluationClient
from orchestrator.clients.retrieval import RetrievalClient
from orchestrator.devstack.demo_world import MODEL_NAME, World, WorldDataset
from orchestrator.devstack.stack import LocalStack, StackPlan
from orchestrator.evaluation.job import Evaluation, EvaluationState, Report
from orchestrator.evaluation.records import Sample
from orchestrator.evaluation.spec import DatasetSpec, EvaluatedStrategy, EvaluationSpec
from orchestrator.registration.peft_folder import read_adapter
from orchestrator.registration.training_examples import example_prompts, ranked_samples, sample_prompt

TOP_K = 3
WEIGHTING_TEMPERATURE = 0.2
"""The study's: at the server's default of 0.05 the best match takes nearly all, and a mixture shows little else."""
EXAMPLES = 20
REGISTERED_AT_ONCE = 4
REQUESTS = 3
STRATEGIES = (
    EvaluatedStrategy(AnswerStrategy.BASE),
    EvaluatedStrategy(AnswerStrategy.SELECTION),
    EvaluatedStrategy(AnswerStrategy.MIXTURE),
    EvaluatedStrategy(AnswerStrategy.FUSION, FusionMethod.CONCAT),
    EvaluatedStrategy(AnswerStrategy.ORACLE),
)
"""Fusion is `concat`: the world's adapters have different ranks, which `linear` refuses."""

POLL_S = 0.5

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """A sample request of the demo: one step of a held-out episode."""

    dataset: WorldDataset
    sample: Sample


def stack_plan(world: World, work_dir: Path, data: Path, environment: dict[str, str]) -> StackPlan:
    """Return the tiers of the demo: tiny checkpoints on the CPU, free ports, an empty catalogue."""
    return StackPlan(
        work_dir=work_dir,
        environment=environment,
        retrieval={"embedder_path": world.embedder, "device": "cpu"},
        generation={
            "model_path": world.base,
            "model_name": MODEL_NAME,
            "adapter_roots": [world.adapters],
            "device": "cpu",
        },
        orchestrator={"dataset_roots": [data]},
        fresh=True,
        grace_s=2.0,
    )


async def register(target: str, datasets: Sequence[WorldDataset], on_registered: Callable[[Adapter], None]) -> None:
    """Register the adapter of every dataset, each by some of its training examples."""
    room = asyncio.Semaphore(REGISTERED_AT_ONCE)

    async def register_one(retrieval: RetrievalClient, dataset: WorldDataset) -> None:
        async with room:
            adapter = read_adapter(
                dataset.adapter_id,
                dataset.checkpoint,
                kind=dataset.kind,
                display_name=dataset.display_name,
                description=dataset.description,
            )
            prompts = await asyncio.to_thread(example_prompts, dataset.train, count=EXAMPLES, seed=0)
            on_registered(await retrieval.create_adapter(adapter, prompts))

    async with RetrievalClient(target) as retrieval, asyncio.TaskGroup() as tasks:
        for dataset in datasets:
            tasks.create_task(register_one(retrieval, dataset))


def sample_requests(datasets: Sequence[WorldDataset]) -> list[Request]:
    """Return some held-out steps, of datasets far apart, in which a button is chosen by what is on the screen."""
    far_apart = {round(index * (len(datasets) - 1) / max(1, REQUESTS - 1)) for index in range(REQUESTS)}
    requests = []
    for index in sorted(min(each, len(datasets) - 1) for each in far_apart):
        samples = ranked_samples(datasets[index].test, seed=0)
        clicks = [sample for sample in samples if sample.truth.startswith("Click")]
        requests.append(Request(datasets[index], (clicks or samples)[0]))
    return requests


def ask(client: AnswerClient, request: Request) -> AsyncIterator[Selection | str | Answer]:
    """Ask a sample request with a mixture of the adapters that fit it."""
    return client.stream(
        Question(sample_prompt(request.sample), AnswerStrategy.MIXTURE, retrieval(request.dataset.kind))
    )


def retrieval(kind: str = "") -> RetrievalOptions:
    """Return how the demo retrieves and weighs."""
    return RetrievalOptions(top_k=TOP_K, kind=kind, weighting=Weighting.SOFTMAX, temperature=WEIGHTING_TEMPERATURE)


def evaluation(datasets: Sequence[WorldDataset], episodes: int) -> EvaluationSpec:
    """Return the demo's job: every strategy on held-out episodes of every dataset."""
    return EvaluationSpec(
        datasets=tuple(
            DatasetSpec(dataset.adapter_id, str(dataset.test.resolve()), dataset.adapter_id, dataset.kind)
            for dataset in datasets
        ),
        strategies=STRATEGIES,
        retrieval=retrieval(),
        max_episodes=episodes,
    )


async def evaluate(
    client: EvaluationClient,
    spec: EvaluationSpec,
    watched: Callable[[AsyncIterator[Evaluation]], Awaitable[Evaluation]],
) -> Report:
    """Run a job to its end, shown by `watched`, and return its report. UnavailableError when it fails."""
    started = await client.create(spec)
    job = await watched(client.watch(started.evaluation_id))
    if job.state is not EvaluationState.SUCCEEDED:
        raise UnavailableError(f"the evaluation {job.evaluation_id} {job.state}: {job.error or 'no reason given'}")
    return await client.report(job.evaluation_id)


async def while_running(stack: LocalStack, work: Awaitable[T]) -> T:
    """Return what `work` returns; stop it, and raise UnavailableError, as soon as a tier of the stack ends."""

    async def guard() -> Any:
        while True:
            stack.check()
            await asyncio.sleep(POLL_S)

    working, guarding = asyncio.ensure_future(work), asyncio.ensure_future(guard())
    try:
        await asyncio.wait((working, guarding), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            guarding.result()
        return await working
    finally:
        working.cancel()
        guarding.cancel()
        await asyncio.gather(working, guarding, return_exceptions=True)
