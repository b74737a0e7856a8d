"""Many random calls at a full queue, some cancelled or invalid: each ends once, and nothing leaks."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from collections import Counter
from pathlib import Path

import grpc.aio
from loraretriever.v1 import adapter_pb2
from loraretriever.v1 import generation_service_pb2 as pb

from infra.contract.prompt import ImagePart, Prompt
from infra.runtime.wire import prompt_to_proto
from tests.support.harness.generation_stack import ModelFixture, Served, served, settings_for, write_model_fixture
from tests.support.harness.images import png_part

REQUESTS = 160
SEEN = {"answered", "cancelled", "NOT_FOUND", "FAILED_PRECONDITION", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"}


def write_with_broken_adapters(folder: Path) -> ModelFixture:
    tiny_model = write_model_fixture(folder, adapters=8)
    shutil.copytree(tiny_model.roots / "a0", tiny_model.roots / "half")
    weights = tiny_model.roots / "half" / "adapter_model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    return tiny_model


def random_request(tiny_model: ModelFixture, draw: random.Random) -> pb.StreamGenerateRequest:
    names = draw.sample([*tiny_model.adapters, *tiny_model.adapters, "half", "unknown"], draw.randint(1, 3))
    shares = [adapter_pb2.WeightedAdapter(adapter_id=name, weight=draw.random()) for name in dict.fromkeys(names)]
    composition = draw.choice(
        [
            pb.Composition(),
            pb.Composition(mixture=pb.Mixture(adapters=shares)),
            pb.Composition(mixture=pb.Mixture(adapters=shares)),
            pb.Composition(fusion=pb.Fusion(adapters=shares, method=pb.FUSION_METHOD_CONCAT)),
        ]
    )
    images = [png_part(40, 60)] if draw.random() < 0.3 else []
    if draw.random() < 0.05:
        images = [ImagePart(b"not an image")]
    text = "word " * 600 if draw.random() < 0.05 else "What is on the screen?"
    return pb.StreamGenerateRequest(
        prompt=prompt_to_proto(Prompt.of(text, images)),
        composition=composition,
        decoding=pb.Decoding(max_new_tokens=draw.randint(1, 30), temperature=draw.choice([0.0, 1.0])),
    )


async def outcome(service: Served, request: pb.StreamGenerateRequest, draw: random.Random) -> str:
    """Make a call, cancel some after their first event, and return its outcome."""
    impatient = draw.random() < 0.15
    call = service.stub.StreamGenerate(request, timeout=0.2 if draw.random() < 0.1 else 60)
    finals = 0
    try:
        async for event in call:
            finals += event.WhichOneof("event") == "final"
            if impatient:
                call.cancel()
    except asyncio.CancelledError:
        return "cancelled"
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    assert finals == 1
    return "answered"


async def test_every_call_ends_once_and_nothing_leaks(tmp_path: Path) -> None:
    draw = random.Random(5)
    tiny_model = write_with_broken_adapters(tmp_path)
    settings = settings_for(tiny_model.base, [tiny_model.roots], max_running=6, max_waiting=60, bank_ranks=30)
    async with served(settings) as service:
        ends = Counter(
            await asyncio.gather(*(outcome(service, random_request(tiny_model, draw), draw) for _ in range(REQUESTS)))
        )
        assert sum(ends.values()) == REQUESTS
        assert ends["answered"] > REQUESTS // 4
        assert SEEN <= set(ends) <= SEEN | {"DEADLINE_EXCEEDED"}
        last = pb.GenerateRequest(prompt=prompt_to_proto(Prompt.of("hello")), decoding=pb.Decoding(max_new_tokens=2))
        assert (await service.stub.Generate(last, timeout=60)).usage.completion_tokens > 0
        stack = service.stack
        async with asyncio.timeout(20):
            while stack.engine.running or stack.engine.waiting or stack.residency.leased_ranks:
                await asyncio.sleep(0.01)
        assert stack.bank.free + stack.residency.ranks == stack.bank.ranks
