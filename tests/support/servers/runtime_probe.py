"""A generation service that behaves as a test wants, served over loopback, and sync and aio calls to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Literal

from loraretriever.v1 import generation_service_pb2 as pb
from loraretriever.v1 import generation_service_pb2_grpc as stubs

from infra.runtime.channel import ChannelOptions, aio_channel, sync_channel
from infra.runtime.server import GrpcServer
from infra.runtime.settings import ServerOptions
from tests.support.servers.background import on_event_loop

SERVICE = "loraretriever.v1.GenerationService"
GENERATE = f"/{SERVICE}/Generate"
PIECES = ("a", "b")

Kind = Literal["sync", "aio"]
Act = Callable[[Any], None]
"""What a handler does before it answers, given its context: raise, wait, or record."""


class Probe(stubs.GenerationServiceServicer):
    def __init__(self, act: Act) -> None:
        self.act = act

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> pb.GenerateResponse:  # noqa: N802
        self.act(context)
        return pb.GenerateResponse(text="".join(PIECES))

    async def StreamGenerate(  # noqa: N802
        self, request: pb.StreamGenerateRequest, context: Any
    ) -> AsyncIterator[pb.StreamGenerateResponse]:
        for piece in PIECES:
            yield pb.StreamGenerateResponse(delta=piece)
        self.act(context)


def stub_of(channel: Any) -> Any:
    """Return the generated stub of a channel, of either kind."""
    return stubs.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]


def nothing(_context: Any) -> None:
    """Just answer."""


@contextmanager
def serving(act: Act = nothing, options: ServerOptions | None = None, servicer: Any = None) -> Iterator[GrpcServer]:
    """Serve a probe, or `servicer`, on the event loop of a thread, and yield its server."""

    @asynccontextmanager
    async def serve() -> AsyncIterator[GrpcServer]:
        server = GrpcServer(options or ServerOptions())
        server.add(servicer or Probe(act), stubs.add_GenerationServiceServicer_to_server, SERVICE)
        async with server:
            yield server

    with on_event_loop(serve) as server:
        yield server


def generate(kind: Kind, options: ChannelOptions, metadata: Any = None, timeout: float | None = None) -> str:
    """Return the answer of a unary call."""
    request = pb.GenerateRequest()
    if kind == "sync":
        with sync_channel(options) as channel:
            return str(stub_of(channel).Generate(request, metadata=metadata, timeout=timeout).text)

    async def call() -> str:
        async with aio_channel(options) as channel:
            stub = stub_of(channel)
            return str((await stub.Generate(request, metadata=metadata, timeout=timeout)).text)

    return asyncio.run(call())


def stream(kind: Kind, options: ChannelOptions, into: list[str]) -> None:
    """Put the pieces of a streamed answer into a list as they come."""
    request = pb.StreamGenerateRequest()
    if kind == "sync":
        with sync_channel(options) as channel:
            for piece in stub_of(channel).StreamGenerate(request):
                into.append(piece.delta)
        return

    async def call() -> None:
        async with aio_channel(options) as channel:
            async for piece in stub_of(channel).StreamGenerate(request):
                into.append(piece.delta)

    asyncio.run(call())


def raw_call(address: str, method: str, request: bytes) -> bytes:
    """Return the answer of a unary call whose request is just these bytes."""
    with sync_channel(ChannelOptions(address)) as channel:
        call: Any = channel.unary_unary(method)
        return bytes(call(request))
