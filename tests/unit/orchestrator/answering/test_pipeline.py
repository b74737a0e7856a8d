"""The pipeline with stand-ins for both services: what is asked of each, and what comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from infra.contract.adapter import Adapter
from infra.contract.composition import Base, Composition, Fusion, FusionMethod, Mixture, WeightedAdapter
from infra.contract.errors import BaseModelMismatchError, DeadlineError, InvalidArgumentError, UnavailableError
from infra.contract.generation import Decoding, FinishReason, Generation, Timings, Usage
from infra.contract.prompt import Prompt
from infra.contract.retrieval import Match, RetrievalOptions, Selection, SelectionReason
from orchestrator.answering.model_info import ModelInfo, ModelLimits
from orchestrator.answering.pipeline import Pipeline
from orchestrator.answering.question import Answer, Question, RetrievalResult, RetrieveArguments
from orchestrator.answering.shared_calls import Shared, SharedCalls
from orchestrator.answering.strategy import AnswerStrategy, compose

PROMPT = Prompt.of("open the mail")
SELECTION = Selection(
    tuple(
        Match(Adapter(name, "tiny", f"adapters/{name}", revision=f"{name}-1"), similarity, weight)
        for name, similarity, weight in (("gmail", 0.9, 0.6), ("ebay", 0.7, 0.3), ("clock", 0.2, 0.1))
    )
)


@dataclass
class FakeRetrieval:
    selection: Selection = SELECTION
    asked: list[RetrievalOptions] = field(default_factory=list)

    async def retrieve(
        self,
        prompt: Prompt,
        options: RetrievalOptions,
        timeout_s: float | None = None,
        arguments: RetrieveArguments | None = None,
    ) -> RetrievalResult:
        self.asked.append(options)
        return RetrievalResult(self.selection, "catalogue-7")


@dataclass
class FakeGeneration:
    name: str = "tiny"
    max_adapters: int = 0
    lookups: int = 0
    failures: list[Exception] = field(default_factory=list)
    compositions: list[Composition] = field(default_factory=list)

    async def get_model(self, timeout_s: float | None = None) -> ModelInfo:
        self.lookups += 1
        return ModelInfo(self.name, "fake", "cpu", "float32", ModelLimits(max_adapters=self.max_adapters))

    async def generate(
        self, prompt: Prompt, composition: Composition, decoding: Decoding, timeout_s: float | None = None
    ) -> Generation:
        if self.failures:
            raise self.failures.pop()
        self.compositions.append(composition)
        applied = () if isinstance(composition, Base) else composition.adapters
        return Generation("done", FinishReason.STOP, Usage(3, 0, 1), Timings(0.0, 0.0, 0.0), applied)

    async def stream(
        self, prompt: Prompt, composition: Composition, decoding: Decoding, timeout_s: float | None = None
    ) -> AsyncIterator[str | Generation]:
        yield "do"
        yield "ne"
        yield await self.generate(prompt, composition, decoding, timeout_s)


def test_selection_is_best_adapter_with_weight_one() -> None:
    assert compose(AnswerStrategy.SELECTION, SELECTION) == Mixture((WeightedAdapter("gmail", 1.0, "gmail-1"),))


def test_mixture_uses_weights_of_retrieval() -> None:
    assert compose(AnswerStrategy.MIXTURE, SELECTION) == Mixture(
        (
            WeightedAdapter("gmail", 0.6, "gmail-1"),
            WeightedAdapter("ebay", 0.3, "ebay-1"),
            WeightedAdapter("clock", 0.1, "clock-1"),
        )
    )


def test_fusion_carries_its_method() -> None:
    composition = compose(AnswerStrategy.FUSION, SELECTION, FusionMethod.CONCAT)
    assert composition == Fusion(SELECTION.weighted, FusionMethod.CONCAT)


def test_oracle_is_named_adapter_with_weight_one() -> None:
    assert compose(AnswerStrategy.ORACLE, Selection(), oracle="ebay") == Mixture((WeightedAdapter("ebay", 1.0),))


def test_oracle_without_adapter_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="needs the correct adapter"):
        compose(AnswerStrategy.ORACLE, Selection())


@pytest.mark.parametrize("strategy", [AnswerStrategy.SELECTION, AnswerStrategy.MIXTURE, AnswerStrategy.FUSION])
def test_empty_selection_composes_base_model_alone(strategy: AnswerStrategy) -> None:
    assert compose(strategy, Selection()) == Base()


async def test_answer_names_retrieved_and_applied_adapters() -> None:
    answer = await Pipeline(FakeRetrieval(), FakeGeneration()).answer(Question(PROMPT))
    assert answer.selection == SELECTION
    assert answer.generation.applied == SELECTION.weighted
    assert answer.catalogue_revision == "catalogue-7"
    assert 0 <= answer.retrieval_s <= answer.total_s


async def test_empty_selection_is_answered_by_base_model() -> None:
    answer = await Pipeline(FakeRetrieval(Selection()), FakeGeneration()).answer(Question(PROMPT))
    assert answer.selection.matches == ()
    assert answer.generation.applied == ()
    assert answer.generation.text == "done"


@pytest.mark.parametrize("strategy", [AnswerStrategy.BASE, AnswerStrategy.ORACLE])
async def test_base_and_oracle_retrieve_nothing(strategy: AnswerStrategy) -> None:
    retrieval = FakeRetrieval()
    await Pipeline(retrieval, FakeGeneration()).answer(Question(PROMPT, strategy, oracle="ebay"))
    assert retrieval.asked == []


async def test_base_model_is_filled_in_and_looked_up_once() -> None:
    retrieval, generation = FakeRetrieval(), FakeGeneration()
    pipeline = Pipeline(retrieval, generation)
    for _ in range(3):
        await pipeline.answer(Question(PROMPT, retrieval=RetrievalOptions(top_k=2)))
    assert retrieval.asked == [RetrievalOptions(top_k=2, base_model="tiny")] * 3
    assert generation.lookups == 1


async def test_base_model_is_looked_up_again_after_service_went_away() -> None:
    retrieval, generation = FakeRetrieval(), FakeGeneration()
    pipeline = Pipeline(retrieval, generation)
    await pipeline.answer(Question(PROMPT))
    generation.failures.append(UnavailableError("restarting"))
    with pytest.raises(UnavailableError):
        await pipeline.answer(Question(PROMPT))
    generation.name = "other"
    await pipeline.answer(Question(PROMPT))
    assert retrieval.asked[-1].base_model == "other"


async def test_adapters_of_another_base_model_are_refused() -> None:
    question = Question(PROMPT, retrieval=RetrievalOptions(base_model="InternVL2-2B"))
    with pytest.raises(BaseModelMismatchError, match=r"InternVL2-2B.*'tiny'"):
        await Pipeline(FakeRetrieval(), FakeGeneration()).answer(question)


async def test_stream_is_selection_then_deltas_then_complete_answer() -> None:
    pipeline = Pipeline(FakeRetrieval(), FakeGeneration())
    events = [event async for event in pipeline.stream(Question(PROMPT))]
    assert events[0] == SELECTION
    assert events[1:3] == ["do", "ne"]
    assert isinstance(events[3], Answer)
    assert events[3].generation.text == "done"
    assert len(events) == 4


async def test_retrieval_counts_against_deadline() -> None:
    with pytest.raises(DeadlineError):
        await Pipeline(FakeRetrieval(), FakeGeneration()).answer(Question(PROMPT), timeout_s=1e-9)


async def test_base_model_answers_alone_without_adapters_of_its_own() -> None:
    class Foreign(FakeRetrieval):
        async def retrieve(
            self,
            prompt: Prompt,
            options: RetrievalOptions,
            timeout_s: float | None = None,
            arguments: RetrieveArguments | None = None,
        ) -> RetrievalResult:
            return RetrievalResult(Selection(reason=SelectionReason.NO_ADAPTERS_OF_MODEL), "catalogue-1")

    generation = FakeGeneration()
    answer = await Pipeline(Foreign(), generation).answer(Question(PROMPT))
    assert generation.compositions == [Base()]
    assert answer.selection == Selection(reason=SelectionReason.NO_ADAPTERS_OF_MODEL)


async def test_too_many_adapters_for_uniform_all_name_remedy() -> None:
    class Catalogue(FakeRetrieval):
        async def list_adapters(self, *_: Any, **__: Any) -> list[Adapter]:
            return [match.adapter for match in SELECTION.matches]

    generation = FakeGeneration(max_adapters=2)
    with pytest.raises(InvalidArgumentError, match=r"all 3 adapters of the catalogue.*at most 2.*--max-adapters"):
        await Pipeline(Catalogue(), generation).answer(Question(PROMPT, AnswerStrategy.UNIFORM_ALL))
    assert generation.lookups == 2, "a service may have restarted with a higher limit"
    answer = await Pipeline(Catalogue(), generation).answer(
        Question(PROMPT, AnswerStrategy.UNIFORM_ALL, RetrievalOptions(exclude=("ebay",)))
    )
    assert [(share.adapter_id, share.weight) for share in answer.generation.applied] == [("gmail", 0.5), ("clock", 0.5)]


async def test_questions_share_retrieval_of_same_prompt_and_options_only() -> None:
    retrieval = FakeRetrieval()
    pipeline = Pipeline(retrieval, FakeGeneration())
    again = Question(PROMPT, AnswerStrategy.SELECTION, shared_by="job-1")
    others = [
        Question(PROMPT, shared_by="job-2"),
        Question(Prompt.of("another"), shared_by="job-1"),
        Question(PROMPT, retrieval=RetrievalOptions(top_k=1), shared_by="job-1"),
        Question(PROMPT),
    ]
    answers = await asyncio.gather(
        *(pipeline.answer(question) for question in [Question(PROMPT, shared_by="job-1"), again])
    )
    assert [answer.retrieval_shared for answer in answers] == [False, True]
    assert len(retrieval.asked) == 1
    assert not any([(await pipeline.answer(question)).retrieval_shared for question in others])
    assert len(retrieval.asked) == 5


async def test_failed_shared_call_is_repeated_and_oldest_result_is_evicted() -> None:
    calls: SharedCalls[int] = SharedCalls(size=2)
    made: list[str] = []

    async def make(name: str) -> int:
        made.append(name)
        if len(made) == 1:
            raise UnavailableError("away")
        return len(made)

    failed = await asyncio.gather(*(calls.get("a", lambda: make("a")) for _ in range(2)), return_exceptions=True)
    assert [type(error) for error in failed] == [UnavailableError] * 2
    assert [(await calls.get(name, lambda name=name: make(name))).value for name in "abac"] == [2, 3, 2, 4]
    assert (await calls.get("b", lambda: make("b"))).value == 5
    assert made == ["a", "a", "b", "c", "b"]


async def test_caller_with_time_left_repeats_shared_call_that_another_deadline_ended() -> None:
    calls: SharedCalls[int] = SharedCalls()
    expired = asyncio.Event()

    async def time_out() -> int:
        await expired.wait()
        raise DeadlineError("too late")

    async def make() -> int:
        return 7

    hasty = asyncio.create_task(calls.get("a", time_out, timeout_s=0.01))
    await asyncio.sleep(0)
    patient = asyncio.create_task(calls.get("a", make, timeout_s=60))
    with pytest.raises(DeadlineError):
        await hasty
    expired.set()
    assert await patient == Shared(7, is_reused=False)


async def test_wait_for_shared_call_ends_at_deadline_of_caller() -> None:
    calls: SharedCalls[None] = SharedCalls()
    end = asyncio.Event()

    async def wait() -> None:
        await end.wait()

    with pytest.raises(DeadlineError):
        await calls.get("a", wait, timeout_s=0.01)
    end.set()
    assert (await calls.get("a", wait)).is_reused
