"""Servers and channels over loopback: health, reflection, identity, tokens, deadlines, stopping."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc  # type: ignore[import-untyped]
from loraretriever.v1 import generation_service_pb2 as pb
from loraretriever.v1 import generation_service_pb2_grpc as stubs
from loraretriever.v1 import retrieval_service_pb2, retrieval_service_pb2_grpc
from prometheus_client import REGISTRY

from infra.contract.errors import (
    ConfigurationError,
    DeadlineError,
    InternalError,
    NotFoundError,
    OverloadedError,
    UnauthenticatedError,
    UnavailableError,
)
from infra.runtime.channel import ChannelOptions, aio_channel, sync_channel
from infra.runtime.deadline import remaining_s
from infra.runtime.error_table import translated
from infra.runtime.logs import request_id
from infra.runtime.server import GrpcServer
from infra.runtime.settings import ServerOptions
from tests.support.servers.background import on_event_loop, serving_blocking
from tests.support.servers.runtime_probe import (
    GENERATE,
    SERVICE,
    Kind,
    Probe,
    generate,
    nothing,
    raw_call,
    serving,
    stream,
    stub_of,
)

KINDS: tuple[Kind, ...] = ("sync", "aio")
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def unwatched(address: str) -> ChannelOptions:
    """Options of a channel that calls a server once, although it reports NOT_SERVING."""
    return ChannelOptions(address, health_check=False, max_attempts=1)


def health(address: str, service: str = "") -> int:
    with sync_channel(unwatched(address)) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        return int(health_pb2_grpc.HealthStub(channel).Check(request).status)


def watch_until_end(address: str, service: str, first: threading.Event) -> list[int]:
    statuses = []
    with sync_channel(unwatched(address)) as channel:
        for response in health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service)):
            statuses.append(int(response.status))
            first.set()
    return statuses


def reflected(options: ChannelOptions) -> set[str]:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    with sync_channel(options) as channel:
        (response,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]))
    return {service.name for service in response.list_services_response.service}


async def test_health_is_not_serving_and_calls_unavailable_until_server_serves() -> None:
    server = GrpcServer(ServerOptions())
    await server.start()
    try:
        assert await asyncio.to_thread(health, server.address) == NOT_SERVING
        with pytest.raises(UnavailableError, match="the server is starting"), translated():
            await asyncio.to_thread(generate, "sync", unwatched(server.address))
        server.add(Probe(nothing), stubs.add_GenerationServiceServicer_to_server, SERVICE)
        assert await asyncio.to_thread(health, server.address, SERVICE) == NOT_SERVING
        await server.serving()
        assert await asyncio.to_thread(health, server.address) == SERVING
        assert await asyncio.to_thread(health, server.address, SERVICE) == SERVING
        assert await asyncio.to_thread(generate, "sync", unwatched(server.address)) == "ab"
        with pytest.raises(grpc.RpcError) as caught:
            await asyncio.to_thread(health, server.address, "no.such.Service")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    finally:
        await server.stop()


def test_health_watchers_are_notified_and_do_not_delay_stop() -> None:
    firsts = [threading.Event(), threading.Event()]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        with serving(options=ServerOptions(shutdown_grace_s=300)) as server:
            watches = [pool.submit(watch_until_end, server.address, SERVICE, first) for first in firsts]
            assert all(first.wait(10) for first in firsts)
            assert generate("sync", ChannelOptions(server.address)) == "ab", "watchers occupy no worker"
            stopped_at = time.monotonic()
        assert time.monotonic() - stopped_at < 100
        assert [watch.result(10) for watch in watches] == [[SERVING, NOT_SERVING]] * 2


def test_watcher_that_disconnects_does_not_affect_others() -> None:
    first = threading.Event()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        with serving() as server, sync_channel(unwatched(server.address)) as channel:
            leaving = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
            assert next(leaving).status == SERVING
            staying = pool.submit(watch_until_end, server.address, SERVICE, first)
            assert first.wait(10)
            leaving.cancel()
        assert staying.result(10) == [SERVING, NOT_SERVING]


@pytest.mark.parametrize("client", KINDS)
async def test_channel_sends_no_call_to_server_that_is_not_serving(client: Kind) -> None:
    server = GrpcServer(ServerOptions())
    await server.start()
    try:
        with pytest.raises(UnavailableError, match="runs and is ready"), translated():
            await asyncio.to_thread(generate, client, ChannelOptions(server.address, max_attempts=1))
    finally:
        await server.stop()


def test_reflection_lists_services() -> None:
    with serving() as server:
        names = reflected(ChannelOptions(server.address))
    assert names == {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


@pytest.mark.parametrize("client", KINDS)
def test_only_calls_with_token_are_served_except_health(client: Kind) -> None:
    with serving(options=ServerOptions(auth_token="s3cret")) as server:
        with pytest.raises(UnauthenticatedError, match="carries no bearer token; send metadata"), translated():
            generate(client, ChannelOptions(server.address))
        for wrong in ("s3cre", "s3cret2", "S3CRET"):
            with pytest.raises(UnauthenticatedError, match="another bearer token"), translated():
                generate(client, ChannelOptions(server.address, token=wrong))
        with pytest.raises(UnauthenticatedError), translated():
            stream(client, ChannelOptions(server.address, token="other"), [])
        pieces: list[str] = []
        assert generate(client, ChannelOptions(server.address, token="s3cret")) == "ab"
        stream(client, ChannelOptions(server.address, token="s3cret"), pieces)
        assert pieces == ["a", "b"]
        assert health(server.address) == SERVING
        with pytest.raises(UnauthenticatedError), translated():
            reflected(ChannelOptions(server.address))


def test_request_is_not_parsed_before_authentication() -> None:
    with (
        serving(options=ServerOptions(auth_token="s3cret")) as server,
        pytest.raises(UnauthenticatedError),
        translated(),
    ):
        raw_call(server.address, GENERATE, b"\xff\xff\xff")


@pytest.mark.parametrize("token", ["", "two words", "ünïcode", "line\nbreak"])
def test_token_unfit_for_header_is_configuration_error(token: str) -> None:
    with pytest.raises(ConfigurationError, match="printable ASCII"):
        ServerOptions(auth_token=token)
    with pytest.raises(ConfigurationError, match="printable ASCII"):
        ChannelOptions("127.0.0.1:1", token=token)


def test_token_is_not_in_repr_of_options() -> None:
    assert "s3cret" not in repr(ServerOptions(auth_token="s3cret")) + repr(ChannelOptions("x:1", token="s3cret"))


def test_request_id_of_caller_is_echoed_and_unsafe_one_replaced() -> None:
    seen: list[str] = []
    with (
        serving(lambda _: seen.append(request_id())) as server,
        sync_channel(ChannelOptions(server.address)) as channel,
    ):
        stub = stub_of(channel)
        for given in ("ticket-42", "x" * 65, "a b", ""):
            _, call = stub.Generate.with_call(pb.GenerateRequest(), metadata=(("x-request-id", given),))
            answer = stub.StreamGenerate(pb.StreamGenerateRequest(), metadata=(("x-request-id", given),))
            list(answer)
            echoed = [dict(reply.initial_metadata())["x-request-id"] for reply in (call, answer)]
            assert echoed == seen[-2:]
            assert (echoed == ["ticket-42"] * 2) == (given == "ticket-42")
            assert all(0 < len(name) <= 64 for name in echoed)


def test_request_id_and_deadline_propagate_to_next_service() -> None:
    ids: list[str] = []
    left: list[float | None] = []

    def note(_context: Any) -> None:
        ids.append(request_id())
        left.append(remaining_s())

    with serving(note) as behind:

        class Front(stubs.GenerationServiceServicer):
            async def Generate(self, request: Any, context: Any) -> Any:  # noqa: N802
                note(context)
                async with aio_channel(ChannelOptions(behind.address, default_timeout_s=100)) as channel:
                    return await stub_of(channel).Generate(request)

        with serving(servicer=Front()) as server:
            metadata = (("x-request-id", "ticket-42"),)
            assert generate("sync", ChannelOptions(server.address), metadata, timeout=7) == "ab"
    assert ids == ["ticket-42", "ticket-42"]
    assert all(seconds is not None and seconds < 8 for seconds in left), "not the 100 s of the front's own channel"
    assert remaining_s() is None
    assert request_id() == ""


async def test_call_over_servers_limit_ends_with_deadline_error() -> None:
    ended = asyncio.Event()

    class Slow(stubs.GenerationServiceServicer):
        async def Generate(self, request: Any, context: Any) -> Any:  # noqa: N802
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        async def StreamGenerate(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
            yield pb.StreamGenerateResponse(delta="a")
            await asyncio.Event().wait()

    server = GrpcServer(ServerOptions(max_call_s=1))  # time enough to send the first piece of a stream
    server.add(Slow(), stubs.add_GenerationServiceServicer_to_server, SERVICE)
    async with server, aio_channel(ChannelOptions(server.address)) as channel:
        stub = stub_of(channel)
        with pytest.raises(DeadlineError, match=r"longer than this server allows \(1 s\)"), translated():
            await stub.Generate(pb.GenerateRequest())
        assert ended.is_set()
        call = stub.StreamGenerate(pb.StreamGenerateRequest())
        assert (await call.read()).delta == "a"
        with pytest.raises(DeadlineError, match="longer than this server allows"), translated():
            await call.read()


async def test_handler_is_cancelled_when_its_caller_disconnects() -> None:
    ended = asyncio.Event()

    class Endless(stubs.GenerationServiceServicer):
        async def StreamGenerate(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
            try:
                yield pb.StreamGenerateResponse(delta="a")
                await asyncio.Event().wait()
            finally:
                ended.set()

    server = GrpcServer(ServerOptions())
    server.add(Endless(), stubs.add_GenerationServiceServicer_to_server, SERVICE)
    async with server, aio_channel(ChannelOptions(server.address)) as channel:
        call = stub_of(channel).StreamGenerate(pb.StreamGenerateRequest())
        async for _ in call:
            call.cancel()
            break
        await asyncio.wait_for(ended.wait(), 10)


RETRIEVAL_SERVICE = "loraretriever.v1.RetrievalService"
add_retrieval = retrieval_service_pb2_grpc.add_RetrievalServiceServicer_to_server


class BlockingProbe(retrieval_service_pb2_grpc.RetrievalServiceServicer):
    """A servicer of plain functions, which runs on an executor."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.act = act
        self.calls = 0

    def GetCatalogue(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.calls += 1
        self.act()
        return retrieval_service_pb2.GetCatalogueResponse(adapter_count=7)


GET_CATALOGUE = f"/{RETRIEVAL_SERVICE}/GetCatalogue"


def running_calls(method: str) -> float:
    return REGISTRY.get_sample_value("loraretriever_grpc_calls_running", {"method": method}) or 0


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def get_catalogue(address: str, timeout: float = 20, metadata: Any = None) -> int:
    # Unwatched: a channel that watches the health of its server occupies a second call.
    with sync_channel(unwatched(address)) as channel, translated():
        stub = retrieval_service_pb2_grpc.RetrievalServiceStub(channel)  # type: ignore[no-untyped-call]
        request = retrieval_service_pb2.GetCatalogueRequest()
        return int(stub.GetCatalogue(request, timeout=timeout, metadata=metadata).adapter_count)


def test_blocking_method_runs_on_executor_with_request_id_and_deadline() -> None:
    seen: list[tuple[str, str, float | None]] = []

    def act() -> None:
        seen.append((threading.current_thread().name, request_id(), remaining_s()))

    with serving_blocking(BlockingProbe(act), add_retrieval, RETRIEVAL_SERVICE) as server:
        assert get_catalogue(server.address, metadata=(("x-request-id", "ticket-42"),)) == 7
    ((thread, seen_id, seconds),) = seen
    assert thread.startswith("ThreadPoolExecutor")
    assert seen_id == "ticket-42"
    assert seconds is not None
    assert 0 < seconds <= 20


def test_error_of_blocking_method_reaches_caller_and_next_call_works() -> None:
    errors: list[Exception] = [NotFoundError("no adapter 'x'"), RuntimeError("secret")]

    def act() -> None:
        if errors:
            raise errors.pop(0)

    with serving_blocking(BlockingProbe(act), add_retrieval, RETRIEVAL_SERVICE) as server:
        with pytest.raises(NotFoundError, match="no adapter 'x'"):
            get_catalogue(server.address)
        with pytest.raises(InternalError, match="its log has the reason"):
            get_catalogue(server.address)
        assert get_catalogue(server.address) == 7


def test_call_that_ends_while_queued_never_runs() -> None:
    entered, release = threading.Event(), threading.Event()

    def act() -> None:
        entered.set()
        assert release.wait(20)

    probe = BlockingProbe(act)
    with (
        concurrent.futures.ThreadPoolExecutor() as pool,
        serving_blocking(probe, add_retrieval, RETRIEVAL_SERVICE, threads=1) as server,
    ):
        running = pool.submit(get_catalogue, server.address)
        assert entered.wait(20)
        with pytest.raises(DeadlineError):
            get_catalogue(server.address, timeout=0.2)
        wait_until(lambda: running_calls(GET_CATALOGUE) == 1)
        release.set()
        assert running.result(20) == 7
        assert get_catalogue(server.address) == 7
        assert probe.calls == 2, "the call that ended while it was queued did not run"


def test_stop_waits_for_work_of_call_that_has_ended() -> None:
    entered, release = threading.Event(), threading.Event()
    finished: list[bool] = []

    def act() -> None:
        entered.set()
        assert release.wait(20)
        finished.append(True)

    stopping = ServerOptions(shutdown_grace_s=60)

    @asynccontextmanager
    async def serve() -> AsyncIterator[GrpcServer]:
        executor = concurrent.futures.ThreadPoolExecutor(1)
        server = GrpcServer(stopping)
        server.add(BlockingProbe(act), add_retrieval, RETRIEVAL_SERVICE, executor)
        async with server:
            yield server
        assert finished == [True], "the server stopped before the work ended"
        executor.shutdown()

    with on_event_loop(serve) as server:
        with pytest.raises(DeadlineError):
            get_catalogue(server.address, timeout=1)
        assert entered.wait(20)
        wait_until(lambda: running_calls(GET_CATALOGUE) == 0)
        threading.Timer(0.3, release.set).start()


def test_blocking_calls_over_limit_are_refused() -> None:
    entered, release = threading.Event(), threading.Event()

    def act() -> None:
        entered.set()
        assert release.wait(20)

    options = ServerOptions(max_concurrent_calls=2, shutdown_grace_s=0)
    with (
        concurrent.futures.ThreadPoolExecutor() as pool,
        serving_blocking(BlockingProbe(act), add_retrieval, RETRIEVAL_SERVICE, options=options, threads=1) as server,
    ):
        calls = [pool.submit(get_catalogue, server.address) for _ in range(2)]
        assert entered.wait(20)
        wait_until(lambda: running_calls(GET_CATALOGUE) == 2)
        with pytest.raises(OverloadedError):
            get_catalogue(server.address)
        release.set()
        assert [call.result(20) for call in calls] == [7, 7]


def test_blocking_call_over_servers_limit_ends_before_its_method() -> None:
    release = threading.Event()
    probe = BlockingProbe(lambda: release.wait(20) and None)
    options = ServerOptions(max_call_s=0.2, shutdown_grace_s=0)
    with serving_blocking(probe, add_retrieval, RETRIEVAL_SERVICE, options=options) as server:
        with pytest.raises(DeadlineError, match="longer than this server allows"):
            get_catalogue(server.address)
        release.set()


async def test_streaming_method_cannot_run_on_executor() -> None:
    server = GrpcServer(ServerOptions())
    with (
        concurrent.futures.ThreadPoolExecutor() as executor,
        pytest.raises(TypeError, match="StreamGenerate is a streaming method"),
    ):
        server.add(Probe(nothing), stubs.add_GenerationServiceServicer_to_server, SERVICE, executor)


def test_graceful_stop_finishes_running_call() -> None:
    entered = threading.Event()
    release = threading.Event()

    def finish() -> pb.GenerateResponse:
        entered.set()
        release.wait(10)
        return pb.GenerateResponse(text="finished")

    class Slow(stubs.GenerationServiceServicer):
        async def Generate(self, request: Any, context: Any) -> Any:  # noqa: N802
            return await asyncio.to_thread(finish)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        with serving(servicer=Slow()) as server:
            answer = pool.submit(generate, "sync", ChannelOptions(server.address))
            assert entered.wait(10)
            stopping = threading.Timer(0.3, release.set)
            stopping.start()
        assert answer.result(10) == "finished"
        with pytest.raises(UnavailableError), translated(server.address):
            generate("sync", ChannelOptions(server.address, max_attempts=1))


async def test_ready_file_names_address_while_server_serves(tmp_path: Path) -> None:
    path = tmp_path / "run" / "ready.json"
    server = GrpcServer(ServerOptions(ready_file=path))
    server.add(Probe(nothing), stubs.add_GenerationServiceServicer_to_server, SERVICE)
    serving_task = asyncio.create_task(server.serve())
    try:
        content = await asyncio.to_thread(_wait_for, path)
        assert content == {"address": server.address, "pid": os.getpid()}
        assert await asyncio.to_thread(health, content["address"]) == SERVING
    finally:
        server.request_stop()
        await serving_task
    assert list(path.parent.iterdir()) == []


def _wait_for(path: Path) -> Any:
    deadline = time.monotonic() + 10
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return json.loads(path.read_text())


async def test_unwritable_ready_file_is_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    server = GrpcServer(ServerOptions(ready_file=tmp_path / "file" / "ready.json"))
    with pytest.raises(ConfigurationError, match=r"ready_file .* cannot be written"):
        await server.serve()
    await server.stop()


async def test_port_in_use_is_one_clear_error() -> None:
    with serving() as server:
        with pytest.raises(ConfigurationError) as caught:
            GrpcServer(ServerOptions(address=server.address))
        assert caught.value.message == (
            f"cannot listen on {server.address}: address already in use; "
            "choose another --address, or port 0 for a free one"
        )
    for wrong in ("127.0.0.1", ":50051", "127.0.0.1:99999", "localhost:http"):
        with pytest.raises(ConfigurationError, match="is not host:port"):
            GrpcServer(ServerOptions(address=wrong))
    with pytest.raises(ConfigurationError, match=r"cannot listen on no-such-host\.invalid:1"):
        GrpcServer(ServerOptions(address="no-such-host.invalid:1"))


def test_server_listens_on_unix_socket(tmp_path: Path) -> None:
    address = f"unix:{os.path.relpath(tmp_path / 's.sock')}"
    with serving(options=ServerOptions(address=address)) as server:
        assert server.address == address
        assert generate("sync", ChannelOptions(address)) == generate("aio", ChannelOptions(address)) == "ab"


def test_calls_are_counted_by_method_and_code_only() -> None:
    def count(code: str) -> float:
        return REGISTRY.get_sample_value("loraretriever_grpc_calls_total", {"method": GENERATE, "code": code}) or 0

    before, refused = count("OK"), count("UNAUTHENTICATED")
    with serving(options=ServerOptions(auth_token="s3cret")) as server:
        generate("sync", ChannelOptions(server.address, token="s3cret"))
        with pytest.raises(grpc.RpcError):
            generate("sync", ChannelOptions(server.address))
        with pytest.raises(grpc.RpcError):
            raw_call(server.address, "/random.Service/Method17", b"")
    assert (count("OK"), count("UNAUTHENTICATED")) == (before + 1, refused + 1)
    methods = {sample.labels["method"] for metric in REGISTRY.collect() for sample in metric.samples
               if metric.name.startswith("loraretriever_grpc")}  # fmt: skip
    assert not any("random" in method for method in methods)


def test_calls_are_spread_over_all_targets_and_stopping_one_costs_none() -> None:
    counts = {"one": 0, "two": 0}

    def counting(name: str) -> Callable[[Any], None]:
        def act(_context: Any) -> None:
            counts[name] += 1

        return act

    async def run(target: str, stop_second: Callable[[], Any]) -> None:
        async with aio_channel(ChannelOptions(target)) as channel:
            stub = stub_of(channel)
            stopped = asyncio.Event()

            async def keep_calling() -> None:
                while not (stopped.is_set() and all(counts.values())):
                    await stub.Generate(pb.GenerateRequest(), timeout=20)

            callers = [asyncio.create_task(keep_calling()) for _ in range(8)]
            while not all(counts.values()):
                await stub.Generate(pb.GenerateRequest(), timeout=20)
            await asyncio.to_thread(stop_second)
            stopped.set()
            await asyncio.gather(*callers)
            before = counts["two"]
            for _ in range(10):
                await stub.Generate(pb.GenerateRequest(), timeout=20)
            assert counts["two"] == before

    with serving(counting("one")) as one, ExitStack() as second:
        two = second.enter_context(serving(counting("two")))
        asyncio.run(run(f"{one.address},{two.address}", second.close))


def test_reconnecting_clients_lose_no_call() -> None:
    async def call_for(seconds: float, address: str) -> None:
        async with aio_channel(ChannelOptions(address)) as channel:
            stub = stub_of(channel)
            ends_at = time.monotonic() + seconds
            while time.monotonic() < ends_at:
                await asyncio.gather(*(stub.Generate(pb.GenerateRequest()) for _ in range(4)))

    with serving(options=ServerOptions(max_connection_age_s=0.3, max_connection_age_grace_s=5)) as server:
        asyncio.run(call_for(1.5, server.address))


def test_list_of_names_is_refused_as_target() -> None:
    with pytest.raises(ConfigurationError, match=r"which 'localhost:2' is not"):
        sync_channel(ChannelOptions("127.0.0.1:1,localhost:2"))
    with pytest.raises(ConfigurationError, match="target of a channel is empty"):
        sync_channel(ChannelOptions(" "))
