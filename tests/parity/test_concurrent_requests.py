"""Concurrent requests of every kind over loopback gRPC, against each request alone."""

from __future__ import annotations

import asyncio
import random

import grpc.aio
import pytest
from loraretriever.v1 import adapter_pb2
from loraretriever.v1 import generation_service_pb2 as pb

from infra.contract.prompt import ImagePart, Prompt
from infra.runtime.wire import prompt_to_proto
from tests.support.harness.generation_stack import ModelFixture, Served, served, settings_for, write_model_fixture
from tests.support.harness.images import png_part

REQUESTS = 64


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> ModelFixture:
    return write_model_fixture(tmp_path_factory.mktemp("world"), adapters=6)


def composition(world: ModelFixture, draw: random.Random, kind: int) -> pb.Composition | None:
    count = draw.randint(1, 4)
    names = draw.sample(world.adapters, count)
    shares = [adapter_pb2.WeightedAdapter(adapter_id=name, weight=round(draw.random(), 2)) for name in names]
    match kind:
        case 0:
            return None
        case 1:
            return pb.Composition(mixture=pb.Mixture(adapters=shares[:1]))
        case 2:
            return pb.Composition(mixture=pb.Mixture(adapters=shares))
        case _:
            return pb.Composition(fusion=pb.Fusion(adapters=shares, method=pb.FUSION_METHOD_CONCAT))


def requests(world: ModelFixture, seed: int, count: int = REQUESTS) -> list[pb.GenerateRequest]:
    """Return requests of all composition kinds, with 0 to 2 images, some sampled and some of them short."""
    draw = random.Random(seed)
    made = []
    for index in range(count):
        images: list[ImagePart] = [
            png_part(draw.randint(30, 120), draw.randint(30, 120), draw.randint(0, 9)) for _ in range(index % 3)
        ]
        decoding = pb.Decoding(max_new_tokens=draw.randint(1, 24))
        if index % 5 == 4:
            decoding.MergeFrom(pb.Decoding(temperature=0.9, seed=index, top_p=0.95))
        made.append(
            pb.GenerateRequest(
                prompt=prompt_to_proto(Prompt.of(f"Request {index}: what is on the screen?", images)),
                composition=composition(world, draw, index % 4),
                decoding=decoding,
            )
        )
    return made


async def answers(service: Served, batch: list[pb.GenerateRequest]) -> list[pb.GenerateResponse]:
    return list(await asyncio.gather(*(service.stub.Generate(request) for request in batch)))


async def left_after(call: grpc.aio.UnaryUnaryCall, seconds: float) -> None:  # type: ignore[type-arg]
    await asyncio.sleep(seconds)
    call.cancel()


def outcome(answer: pb.GenerateResponse) -> tuple[object, ...]:
    applied = tuple((share.adapter_id, share.revision, share.weight) for share in answer.applied)
    return answer.text, answer.finish_reason, answer.usage.completion_tokens, applied


async def test_64_concurrent_requests_match_single_ones(world: ModelFixture) -> None:
    batch = requests(world, seed=1)
    async with served(settings_for(world.base, [world.roots], max_running=1)) as service:
        alone = [outcome(await service.stub.Generate(request)) for request in batch]
    crowded = settings_for(world.base, [world.roots], max_running=16, bank_ranks=48, prefill_tokens=40)
    async with served(crowded) as service:
        together = [outcome(answer) for answer in await answers(service, batch)]
        assert service.stack.residency.leased_ranks == service.stack.engine.running == 0
    assert together == alone
    assert len({text for text, *_ in alone}) > REQUESTS // 2


@pytest.mark.parametrize("prefill_tokens", [7, 64])
async def test_joining_and_leaving_requests_change_no_answer(world: ModelFixture, prefill_tokens: int) -> None:
    """Prompts are prefilled in chunks meanwhile, and some callers cancel during their prefill."""
    long = requests(world, seed=2, count=4)
    for request in long:
        request.decoding.max_new_tokens = 60
    async with served(settings_for(world.base, [world.roots], max_running=8)) as service:
        alone = [outcome(await service.stub.Generate(request)) for request in long]
    settings = settings_for(world.base, [world.roots], max_running=8, prefill_tokens=prefill_tokens)
    async with served(settings) as service:
        running = [asyncio.ensure_future(service.stub.Generate(request)) for request in long]
        passing = requests(world, seed=3, count=18)
        for start in range(0, len(passing), 6):
            calls = [service.stub.Generate(request) for request in passing[start : start + 6]]
            calls[0].cancel()
            leaving = asyncio.ensure_future(left_after(calls[1], seconds=0.02 * start))
            await asyncio.gather(*calls[2:], leaving)
        assert [outcome(answer) for answer in await asyncio.gather(*running)] == alone
