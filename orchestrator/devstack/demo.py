"""The demo: the whole system on one of its worlds, driven over gRPC as a user would drive it."""

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
from orchestrator.devstack.demo_world import World, WorldDataset, WorldKind
from orchestrator.devstack.stack import LocalStack, StackPlan
from orchestrator.evaluation.job import Evaluation, EvaluationState, Report
from orchestrator.evaluation.records import Sample
from orchestrator.evaluation.spec import DatasetSpec, EvaluatedStrategy, EvaluationSpec
from orchestrator.registration.peft_folder import read_adapter
from orchestrator.registration.training_examples import example_prompts, ranked_samples, sample_prompt

_TOP_K = 3
EXAMPLES = 20
#: Keeps the embedder's batches full; more only wait in its queue.
_CONCURRENT_REGISTRATIONS = 4
_REQUESTS = 3
#: Fusion is `concat`: the world's adapters have different ranks, which `linear` refuses.
_STRATEGIES = (
    EvaluatedStrategy(AnswerStrategy.BASE),
    EvaluatedStrategy(AnswerStrategy.SELECTION),
    EvaluatedStrategy(AnswerStrategy.MIXTURE),
    EvaluatedStrategy(AnswerStrategy.FUSION, FusionMethod.CONCAT),
    EvaluatedStrategy(AnswerStrategy.ORACLE),
)
#: How often the tiers are checked while the demo runs: an error is reported soon after a tier ends.
_CHECK_INTERVAL_S = 0.5

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """A sample request of the demo: one step of a held-out episode."""

    dataset: WorldDataset
    sample: Sample


def stack_plan(world: World, work_dir: Path, data: Path, environment: dict[str, str]) -> StackPlan:
    """Return the tiers of the demo: small models on the CPU, free ports, an empty catalogue."""
    return StackPlan(
        work_dir=work_dir,
        environment=environment,
        retrieval={"embedder_path": world.embedder, "device": "cpu"},
        generation={
            "model_path": world.base,
            "model_name": world.kind.model_name,
            "adapter_roots": [world.adapters],
            "device": "cpu",
        },
        orchestrator={"dataset_roots": [data]},
        fresh=True,
        grace_s=2.0,
    )


async def register(
    target: str, kind: WorldKind, datasets: Sequence[WorldDataset], on_registered: Callable[[Adapter], None]
) -> None:
    """Register the adapter of every dataset by a sample of its training examples."""
    slots = asyncio.Semaphore(_CONCURRENT_REGISTRATIONS)

    async def register_one(retrieval: RetrievalClient, dataset: WorldDataset) -> None:
        async with slots:
            adapter = read_adapter(
                dataset.adapter_id,
                dataset.checkpoint,
                kind=dataset.kind,
                display_name=dataset.display_name,
                description=dataset.description,
            )
            prompts = await asyncio.to_thread(
                example_prompts, dataset.train, count=EXAMPLES, seed=0, protocol=kind.protocol
            )
            on_registered(await retrieval.create_adapter(adapter, prompts))

    async with RetrievalClient(target) as retrieval, asyncio.TaskGroup() as tasks:
        for dataset in datasets:
            tasks.create_task(register_one(retrieval, dataset))


def sample_requests(kind: WorldKind, datasets: Sequence[WorldDataset]) -> list[Request]:
    """Return held-out samples of different datasets; of those with screens, steps in which a button is chosen."""
    far_apart = {round(index * (len(datasets) - 1) / max(1, _REQUESTS - 1)) for index in range(_REQUESTS)}
    requests = []
    for index in sorted(min(index, len(datasets) - 1) for index in far_apart):
        samples = ranked_samples(datasets[index].test, seed=0, protocol=kind.protocol)
        clicks = [sample for sample in samples if sample.truth.startswith("Click")]
        requests.append(Request(datasets[index], (clicks or samples)[0]))
    return requests


def ask(client: AnswerClient, kind: WorldKind, request: Request) -> AsyncIterator[Selection | str | Answer]:
    """Stream the answer to a request, by a mixture of the adapters that fit it."""
    return client.stream(
        Question(
            sample_prompt(request.sample), AnswerStrategy.MIXTURE, retrieval(kind, _searched(kind, request.dataset))
        )
    )


def retrieval(kind: WorldKind, adapter_kind: str = "") -> RetrievalOptions:
    """Return how the demo retrieves and weighs."""
    return RetrievalOptions(top_k=_TOP_K, kind=adapter_kind, weighting=Weighting.SOFTMAX, temperature=kind.temperature)


def evaluation(kind: WorldKind, datasets: Sequence[WorldDataset], episodes: int) -> EvaluationSpec:
    """Return the demo's job: every strategy on held-out episodes of every dataset."""
    return EvaluationSpec(
        datasets=tuple(
            DatasetSpec(dataset.adapter_id, str(dataset.test.resolve()), dataset.adapter_id, _searched(kind, dataset))
            for dataset in datasets
        ),
        strategies=tuple(
            chosen for chosen in _STRATEGIES if kind.evaluates_fusion or chosen.strategy is not AnswerStrategy.FUSION
        ),
        protocol=kind.protocol,
        retrieval=retrieval(kind),
        max_episodes=episodes,
    )


def _searched(kind: WorldKind, dataset: WorldDataset) -> str:
    """Return the kind of adapters that a dataset's questions are answered by; empty: any."""
    return dataset.kind if kind.retrieves_by_kind else ""


async def evaluate(
    client: EvaluationClient,
    spec: EvaluationSpec,
    watched: Callable[[AsyncIterator[Evaluation]], Awaitable[Evaluation]],
) -> Report:
    """Run a job to its end, shown by `watched`, and return its report. Raises UnavailableError if it fails."""
    started = await client.create(spec)
    job = await watched(client.watch(started.evaluation_id))
    if job.state is not EvaluationState.SUCCEEDED:
        raise UnavailableError(f"the evaluation {job.evaluation_id} {job.state}: {job.error or 'no reason given'}")
    return await client.report(job.evaluation_id)


async def while_running(stack: LocalStack, work: Awaitable[T]) -> T:
    """Return the result of `work`; cancel it and raise UnavailableError as soon as a tier of the stack ends."""

    async def check() -> Any:
        while True:
            stack.check()
            await asyncio.sleep(_CHECK_INTERVAL_S)

    working, checking = asyncio.ensure_future(work), asyncio.ensure_future(check())
    try:
        await asyncio.wait((working, checking), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            checking.result()
        return await working
    finally:
        working.cancel()
        checking.cancel()
        await asyncio.gather(working, checking, return_exceptions=True)
