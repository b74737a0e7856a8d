"""AnswerService over loopback gRPC, with both services behind it as small servers of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from loraretriever.v1 import orchestrator_service_pb2 as pb
from loraretriever.v1 import orchestrator_service_pb2_grpc as pb_grpc

from infra.contract.composition import FusionMethod, WeightedAdapter
from infra.contract.errors import (
    BaseModelMismatchError,
    DeadlineError,
    InvalidArgumentError,
    OverloadedError,
    UnavailableError,
)
from infra.contract.generation import Decoding
from infra.contract.prompt import ImagePart, Prompt
from infra.contract.retrieval import RetrievalOptions, Selection
from orchestrator.answering.question import Answer, Question
from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.clients.answer import AnswerClient
from tests.support.servers.answer_server import answer_server
from tests.support.servers.tiers import ADAPTERS, BASE_MODEL, RETRIEVAL_TIMINGS, FakeTiers, fake_tiers

PROMPT = Prompt.of("open the gmail inbox")
STUB: Any = pb_grpc.AnswerServiceStub


class Served:
    """An orchestrator over fake services, and a client of it."""

    def __init__(self, tiers: FakeTiers, client: AnswerClient) -> None:
        self.tiers = tiers
        self.client = client


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with fake_tiers() as tiers, answer_server(tiers) as address, AnswerClient(address) as client:
        yield Served(tiers, client)


async def test_answer_names_applied_adapters_and_weights(served: Served) -> None:
    answer = await served.client.answer(Question(PROMPT, retrieval=RetrievalOptions(top_k=2)))
    assert answer.generation.text.startswith("mixture(gmail*0.50+")
    assert answer.selection.matches[0].adapter.adapter_id == "gmail"
    assert answer.generation.applied == answer.selection.weighted
    assert answer.selection.matches[0].similarity == pytest.approx(0.9)
    assert answer.catalogue_revision == "catalogue-1"
    assert answer.generation.timings.decode_s == pytest.approx(0.003)


async def test_answer_has_retrieval_timings_and_staleness(
    served: Served,
) -> None:
    answer = await served.client.answer(Question(PROMPT))
    assert answer.retrieval_timings is not None
    assert answer.retrieval_timings.embed_s == pytest.approx(RETRIEVAL_TIMINGS.embed_s)
    assert answer.retrieval_timings.search_s == pytest.approx(RETRIEVAL_TIMINGS.search_s)
    assert not answer.stale
    served.tiers.retrieval.stale = True
    assert (await served.client.answer(Question(PROMPT))).stale
    base = await served.client.answer(Question(PROMPT, AnswerStrategy.BASE))
    assert (base.retrieval_timings, base.stale) == (None, False)


async def test_unset_strategy_is_mixture(served: Served) -> None:
    async with grpc.aio.insecure_channel(served.client.target) as channel:
        request = pb.AnswerRequest()
        request.prompt.messages.add().parts.add().text = "open gmail"
        response = await STUB(channel).Answer(request, timeout=20)
    assert response.answer.text.startswith("mixture(gmail*0.33+")


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (AnswerStrategy.BASE, "base() saw 1"),
        (AnswerStrategy.SELECTION, "mixture(gmail*1.00) saw 1"),
        (AnswerStrategy.FUSION, "fusion(gmail*0.33+"),
    ],
)
async def test_each_strategy_composes_as_named(served: Served, strategy: AnswerStrategy, expected: str) -> None:
    prompt = Prompt.of("open gmail", [ImagePart(b"png")])
    answer = await served.client.answer(Question(prompt, strategy, fusion_method=FusionMethod.CONCAT))
    assert answer.generation.text.startswith(expected)


async def test_base_strategy_does_not_call_retrieval(served: Served) -> None:
    answer = await served.client.answer(Question(PROMPT, AnswerStrategy.BASE))
    assert served.tiers.retrieval.asked == []
    assert answer.selection == Selection()


async def test_base_model_answers_below_minimum_similarity(served: Served) -> None:
    question = Question(Prompt.of("something else"), retrieval=RetrievalOptions(min_similarity=0.8))
    answer = await served.client.answer(question)
    assert answer.selection.matches == ()
    assert answer.generation.applied == ()
    assert answer.generation.text.startswith("base()")


async def test_filters_reach_retrieval_with_base_model_filled_in(served: Served) -> None:
    options = RetrievalOptions(top_k=1, kind="app", exclude=("gmail",), temperature=0.1)
    await served.client.answer(Question(PROMPT, retrieval=options))
    assert served.tiers.retrieval.asked == [
        RetrievalOptions(top_k=1, kind="app", exclude=("gmail",), temperature=0.1, base_model="tiny-vlm")
    ]


async def test_stream_is_selection_then_deltas_then_complete_answer(served: Served) -> None:
    question = Question(PROMPT, AnswerStrategy.SELECTION)
    events = [event async for event in served.client.stream(question)]
    assert isinstance(events[0], Selection)
    assert events[0].matches[0].adapter.adapter_id == "gmail"
    final = events[-1]
    assert isinstance(final, Answer)
    assert events[1:-1] == final.generation.text.split(" ")
    assert final.generation.applied == (WeightedAdapter("gmail", 1.0, "gmail-1"),)
    assert final.selection == events[0]


async def test_empty_prompt_is_refused_and_next_call_works(served: Served) -> None:
    async with grpc.aio.insecure_channel(served.client.target) as channel:
        stub = STUB(channel)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.Answer(pb.AnswerRequest(), timeout=20)
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "prompt.messages" in (raised.value.details() or "")
    assert (await served.client.answer(Question(PROMPT))).generation.text


async def test_oracle_applies_named_adapter(served: Served) -> None:
    answer = await served.client.answer(Question(PROMPT, AnswerStrategy.ORACLE, oracle=ADAPTERS[-1].adapter_id))
    assert [share.adapter_id for share in answer.generation.applied] == [ADAPTERS[-1].adapter_id]
    with pytest.raises(InvalidArgumentError, match="needs the correct adapter's id") as raised:
        await served.client.answer(Question(PROMPT, AnswerStrategy.ORACLE))
    assert raised.value.field == "adapter_id"


async def test_uniform_all_applies_whole_catalogue(served: Served) -> None:
    answer = await served.client.answer(Question(PROMPT, AnswerStrategy.UNIFORM_ALL))
    own = [adapter.adapter_id for adapter in ADAPTERS if adapter.base_model == BASE_MODEL]
    assert {share.adapter_id: share.weight for share in answer.generation.applied} == pytest.approx(
        dict.fromkeys(own, 1 / len(own))
    )


async def test_random_k_draws_by_decoding_seed(served: Served) -> None:
    async def drawn(seed: int | None) -> tuple[str, ...]:
        question = Question(
            PROMPT, AnswerStrategy.RANDOM_K, RetrievalOptions(top_k=1), decoding=Decoding(temperature=1.0, seed=seed)
        )
        return tuple(share.adapter_id for share in (await served.client.answer(question)).generation.applied)

    assert len(await drawn(1)) == 1
    assert await drawn(1) == await drawn(1)
    assert len({await drawn(seed) for seed in range(12)}) > 1
    assert len({await drawn(None) for _ in range(12)}) > 1


async def test_bad_option_is_named_by_its_path(served: Served) -> None:
    async with grpc.aio.insecure_channel(served.client.target) as channel:
        request = pb.AnswerRequest()
        request.prompt.messages.add().parts.add().text = "open gmail"
        request.decoding.top_p = 2.0
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await STUB(channel).Answer(request, timeout=20)
    assert (raised.value.details() or "").startswith("decoding.top_p")


async def test_adapters_of_another_base_model_are_refused(served: Served) -> None:
    with pytest.raises(BaseModelMismatchError, match="tiny-vlm"):
        await served.client.answer(Question(PROMPT, retrieval=RetrievalOptions(base_model="InternVL2-2B")))


async def test_error_of_retrieval_names_fields_of_callers_request(served: Served) -> None:
    served.tiers.retrieval.failure = InvalidArgumentError("prompts[0].messages[0].parts[0].image", "broken")
    with pytest.raises(InvalidArgumentError, match="broken") as raised:
        await served.client.answer(Question(PROMPT))
    assert raised.value.field == "prompt.messages[0].parts[0].image"
    served.tiers.retrieval.failure = InvalidArgumentError("options.top_k", "too many")
    with pytest.raises(InvalidArgumentError, match="too many") as raised:
        await served.client.answer(Question(PROMPT))
    assert raised.value.field == "retrieval.top_k"


async def test_full_generation_service_is_reported_as_overloaded(served: Served) -> None:
    served.tiers.generation.failures["gmail"] = OverloadedError("256 requests wait already")
    with pytest.raises(OverloadedError, match="wait already"):
        await served.client.answer(Question(PROMPT))
    served.tiers.generation.failures.clear()
    assert (await served.client.answer(Question(PROMPT))).generation.text


async def test_stream_that_fails_in_generation_carries_its_error(served: Served) -> None:
    served.tiers.generation.failures["gmail"] = OverloadedError("256 requests wait already")
    events = served.client.stream(Question(PROMPT))
    assert isinstance(await anext(events), Selection)
    with pytest.raises(OverloadedError, match="wait already"):
        await anext(events)


async def test_deadline_of_caller_ends_call_to_service(served: Served) -> None:
    ended = asyncio.Event()

    async def never_answers(_prompt: Prompt, _peer: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    served.tiers.generation.before = never_answers
    with pytest.raises(DeadlineError):
        await served.client.answer(Question(PROMPT), timeout_s=0.5)
    await asyncio.wait_for(ended.wait(), 10)


async def test_unreachable_service_is_named() -> None:
    async with AnswerClient("127.0.0.1:1") as client:
        with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1"):
            await client.answer(Question(PROMPT), timeout_s=10)
