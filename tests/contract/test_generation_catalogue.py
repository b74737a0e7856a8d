"""The generation service resolves adapters through a catalogue over loopback gRPC."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from loraretriever.v1 import adapter_pb2
from loraretriever.v1 import generation_service_pb2 as pb
from loraretriever.v1 import retrieval_service_pb2 as retrieval_pb
from loraretriever.v1.retrieval_service_pb2_grpc import (
    RetrievalServiceServicer,
    add_RetrievalServiceServicer_to_server,
)

from infra.contract.adapter import Adapter
from infra.contract.errors import NotFoundError
from infra.contract.prompt import Prompt
from infra.runtime.error_table import from_rpc_error
from infra.runtime.wire import adapter_to_proto, prompt_to_proto
from tests.support.harness.generation_stack import ModelFixture, served, settings_for, write_model_fixture
from tests.support.servers.background import serving_blocking


class Catalogue(RetrievalServiceServicer):
    """Knows the adapters it is given, and counts how often it is asked."""

    def __init__(self, *adapters: Adapter) -> None:
        self.adapters = {adapter.adapter_id: adapter for adapter in adapters}
        self.asked = 0

    def GetAdapter(  # noqa: N802
        self, request: retrieval_pb.GetAdapterRequest, context: Any
    ) -> retrieval_pb.GetAdapterResponse:
        """Return the adapter, or NOT_FOUND."""
        self.asked += 1
        if request.adapter_id not in self.adapters:
            raise NotFoundError(f"adapter {request.adapter_id!r} is not registered")
        return retrieval_pb.GetAdapterResponse(adapter=adapter_to_proto(self.adapters[request.adapter_id]))


@contextmanager
def unheard() -> Iterator[str]:
    """Yield an address without a listener, reserved so that no other process can bind it."""
    with socket.socket() as kept:
        kept.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{kept.getsockname()[1]}"


@contextmanager
def listening(catalogue: Catalogue) -> Iterator[str]:
    name = "loraretriever.v1.RetrievalService"
    with serving_blocking(catalogue, add_RetrievalServiceServicer_to_server, name) as server:
        yield server.address


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> ModelFixture:
    return write_model_fixture(tmp_path_factory.mktemp("world"), adapters=2)


def request(name: str, revision: str = "") -> pb.GenerateRequest:
    share = adapter_pb2.WeightedAdapter(adapter_id=name, revision=revision, weight=1.0)
    return pb.GenerateRequest(
        prompt=prompt_to_proto(Prompt.of("hello")),
        composition=pb.Composition(mixture=pb.Mixture(adapters=[share])),
        decoding=pb.Decoding(max_new_tokens=3),
    )


async def test_catalogue_locates_adapters_and_names_their_revision(tiny_model: ModelFixture) -> None:
    catalogue = Catalogue(Adapter("notes", "Qwen2-VL-tiny", "a0", revision="7"))
    with listening(catalogue) as target:
        async with served(settings_for(tiny_model.base, [tiny_model.roots], retrieval_target=target)) as service:
            applied = (await service.stub.Generate(request("notes"))).applied
            assert [(share.adapter_id, share.revision) for share in applied] == [("notes", "7")]
            before = catalogue.asked
            assert (await service.stub.Generate(request("notes", "7"))).applied == applied
            assert catalogue.asked == before
            catalogue.adapters["notes"] = Adapter("notes", "Qwen2-VL-tiny", "a1", revision="8")
            assert (await service.stub.Generate(request("notes"))).applied[0].revision == "8"
            assert (await service.stub.Generate(request("notes", "7"))).applied[0].revision == "7"


async def test_base_model_of_catalogue_takes_precedence(tiny_model: ModelFixture) -> None:
    with listening(Catalogue(Adapter("foreign", "OpenGVLab/InternVL2-2B", "a0", revision="1"))) as target:
        async with served(settings_for(tiny_model.base, [tiny_model.roots], retrieval_target=target)) as service:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await service.stub.Generate(request("foreign"))
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            message = from_rpc_error(caught.value).message
            assert message.startswith("adapter 'foreign' was trained on InternVL2-2B; this server runs Qwen2-VL-tiny")
            assert message.endswith("start the server with --model-aliases InternVL2-2B")


async def test_unregistered_adapter_error_says_how_to_register_it(tiny_model: ModelFixture) -> None:
    with listening(Catalogue()) as target:
        async with served(settings_for(tiny_model.base, [tiny_model.roots], retrieval_target=target)) as service:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await service.stub.Generate(request("a0"))
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            assert "loraretriever adapters add" in from_rpc_error(caught.value).message


async def test_base_model_answers_while_catalogue_is_unavailable(
    tiny_model: ModelFixture,
) -> None:
    with unheard() as target:
        settings = settings_for(tiny_model.base, [tiny_model.roots], retrieval_target=target, retrieval_timeout_s=2)
        async with served(settings) as service:
            await check_answers_of_the_base_model_alone(service)


async def check_answers_of_the_base_model_alone(service: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.stub.Generate(request("a0"), timeout=20)
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    plain = pb.GenerateRequest(prompt=prompt_to_proto(Prompt.of("hello")), decoding=pb.Decoding(max_new_tokens=3))
    assert (await service.stub.Generate(plain)).usage.completion_tokens > 0
