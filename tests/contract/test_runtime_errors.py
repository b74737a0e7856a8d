"""Every exception of the contract travels: class, message, field and metadata, over any server and any client."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
import time
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from loraretriever.v1 import generation_service_pb2 as pb
from loraretriever.v1 import generation_service_pb2_grpc as stubs

from infra.contract.errors import (
    CancelledError,
    DeadlineError,
    InternalError,
    InvalidArgumentError,
    LoraRetrieverError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
    UnimplementedError,
    UnreachableError,
)
from infra.runtime.channel import ChannelOptions, aio_channel, sync_channel
from infra.runtime.error_table import DETAILS_KEY, STATUS_OF, from_rpc_error, request_id_of, to_status, translated
from infra.runtime.settings import ServerOptions
from tests.support.servers.runtime_probe import GENERATE, PIECES, Kind, generate, raw_call, serving, stream, stub_of

KINDS: tuple[Kind, ...] = ("sync", "aio")


def tree(root: type[LoraRetrieverError]) -> list[type[LoraRetrieverError]]:
    return [cls for child in root.__subclasses__() for cls in (child, *tree(child))]


def contract_errors() -> list[LoraRetrieverError]:
    classes = [cls for cls in tree(LoraRetrieverError) if cls.__module__ == "infra.contract.errors"]
    return [
        InvalidArgumentError("prompt.messages[0].parts[1].image.data", "broken; send a whole file", adapter="adidas")
        if cls is InvalidArgumentError
        else cls(f"a message of {cls.__name__} with ünïcode,\nand two lines", adapter="adidas", rank="8")
        for cls in classes
    ]


class Raise:
    """Raises the errors of a list one after the other, and the last one from then on."""

    def __init__(self, *errors: BaseException | None) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self, _context: Any) -> None:
        self.calls += 1
        error = self.errors.pop(0) if len(self.errors) > 1 else self.errors[0]
        if error is not None:
            raise error


def test_every_contract_error_has_status() -> None:
    missing = [error for error in contract_errors() if type(error) not in STATUS_OF]
    assert not missing
    assert len({type(error).reason for error in contract_errors()}) == len(contract_errors())


@pytest.mark.parametrize("client", KINDS)
def test_errors_arrive_as_raised(client: Kind) -> None:
    errors = contract_errors()
    act = Raise(None)
    with serving(act) as running:
        options = ChannelOptions(running.address, max_attempts=1)
        for error in errors:
            act.errors = [error]
            with pytest.raises(type(error)) as unary, translated():
                generate(client, options)
            pieces: list[str] = []
            with pytest.raises(type(error)) as streamed, translated():
                stream(client, options, pieces)
            assert tuple(pieces) == PIECES, "what was streamed before the error has arrived"
            for received in (unary.value, streamed.value):
                assert type(received) is type(error)
                assert received.message == error.message
                assert received.metadata == error.metadata
                assert received.reason == error.reason
                assert getattr(received, "field", None) == getattr(error, "field", None)


@pytest.mark.parametrize("client", KINDS)
def test_unexpected_error_shows_request_id_only(client: Kind, caplog: pytest.LogCaptureFixture) -> None:
    with (
        serving(Raise(RuntimeError("the password is hunter2"))) as running,
        caplog.at_level(logging.ERROR),
    ):
        options = ChannelOptions(running.address)
        with pytest.raises(grpc.RpcError) as caught:
            generate(client, options, metadata=(("x-request-id", "ticket-42"),))
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert request_id_of(caught.value) == "ticket-42"
    made = from_rpc_error(caught.value)
    assert type(made) is InternalError
    assert "ticket-42" in made.message
    assert "hunter2" not in str(caught.value)
    assert "hunter2" in caplog.text, "the server's log has the reason"


def test_status_carries_error_info_request_info_and_field_violations() -> None:
    error = InvalidArgumentError("prompt", "is empty", limit="1")
    with serving(Raise(error)) as running, pytest.raises(grpc.RpcError) as caught:
        generate("sync", ChannelOptions(running.address), metadata=(("x-request-id", "r1"),))
    pairs: Any = caught.value.trailing_metadata()
    trailers = dict(pairs)
    assert trailers["x-request-id"] == "r1"
    status = status_pb2.Status.FromString(trailers[DETAILS_KEY])
    info, request, bad = error_details_pb2.ErrorInfo(), error_details_pb2.RequestInfo(), error_details_pb2.BadRequest()
    assert [detail.Unpack(into) for detail, into in zip(status.details, (info, request, bad), strict=True)]
    assert (info.reason, info.domain, dict(info.metadata)) == ("INVALID_ARGUMENT", "loraretriever", {"limit": "1"})
    assert request.request_id == "r1"
    assert [(v.field, v.description) for v in bad.field_violations] == [("prompt", "is empty")]


def test_call_is_retried_until_server_is_available() -> None:
    act = Raise(UnavailableError("not yet"), UnavailableError("not yet"), None)
    with serving(act) as running:
        assert generate("sync", ChannelOptions(running.address)) == "ab"
        assert act.calls == 3
        act.errors, act.calls = [UnavailableError("not yet"), None], 0
        assert generate("aio", ChannelOptions(running.address)) == "ab"
        assert act.calls == 2


def test_only_unavailable_is_retried() -> None:
    act = Raise(OverloadedError("the queue is full"))
    with serving(act) as running, pytest.raises(OverloadedError), translated():
        generate("sync", ChannelOptions(running.address))
    assert act.calls == 1


def test_method_without_implementation_is_unimplemented() -> None:
    with serving() as running, sync_channel(ChannelOptions(running.address)) as channel:
        with pytest.raises(UnimplementedError, match="does not offer it"), translated():
            stub_of(channel).GetModel(pb.GetModelRequest())
        with pytest.raises(UnimplementedError, match="is it the right service"), translated(running.address):
            raw_call(running.address, "/no.Such/Method", b"")


def test_malformed_message_is_invalid_argument() -> None:
    with serving() as running:
        with pytest.raises(InvalidArgumentError, match="not a message of this method"), translated():
            raw_call(running.address, GENERATE, b"\xff\xff\xff")
        assert generate("sync", ChannelOptions(running.address)) == "ab", "the next request works"


@pytest.mark.parametrize("cancelled", [concurrent.futures.CancelledError(), asyncio.CancelledError()])
def test_work_cancelled_on_server_is_reported_as_cancelled(cancelled: BaseException) -> None:
    with (
        serving(Raise(cancelled)) as running,
        pytest.raises(CancelledError, match="send it again"),
        translated(),
    ):
        generate("sync", ChannelOptions(running.address))


def test_error_of_next_service_keeps_its_class() -> None:
    with serving(Raise(NotFoundError("no adapter 'x'"))) as behind:

        def call_behind(_context: Any) -> None:
            generate("sync", ChannelOptions(behind.address))

        with (
            serving(call_behind) as running,
            pytest.raises(NotFoundError, match="no adapter 'x'"),
            translated(),
        ):
            generate("sync", ChannelOptions(running.address))


@pytest.mark.parametrize("client", KINDS)
def test_unreachable_server_is_named_with_remedy(client: Kind) -> None:
    options = ChannelOptions("127.0.0.1:1", max_attempts=1)
    message = r"retrieval at 127\.0\.0\.1:1 cannot be reached; check that it runs"
    with pytest.raises(UnreachableError, match=message) as raised, translated("retrieval at 127.0.0.1:1"):
        generate(client, options)
    assert raised.value.target == "retrieval at 127.0.0.1:1"


def test_server_that_reports_another_one_unreachable_is_not_taken_for_it() -> None:
    behind = UnreachableError("127.0.0.1:1 cannot be reached", target="127.0.0.1:1")
    with serving(Raise(behind)) as running:
        with pytest.raises(UnreachableError) as raised, translated(running.address):
            generate("sync", ChannelOptions(running.address, max_attempts=1))
        assert raised.value.target == "127.0.0.1:1" != running.address


@pytest.mark.parametrize("client", KINDS)
def test_missed_deadline_is_named_with_remedy(client: Kind) -> None:
    release = threading.Event()

    def wait(_context: Any) -> None:
        release.wait(10)

    with serving(wait) as running:
        try:
            message = "the model did not answer before the deadline; allow more time"
            with pytest.raises(DeadlineError, match=message), translated("the model"):
                generate(client, ChannelOptions(running.address), timeout=0.3)
        finally:
            release.set()


@pytest.mark.parametrize("client", KINDS)
def test_oversized_message_names_limit_on_either_side(client: Kind) -> None:
    with serving(options=ServerOptions(max_message_bytes=8192)) as running:
        for client_limit in (64 * 2**20, 8192):
            options = ChannelOptions(running.address, max_message_bytes=client_limit)
            message = r"over the size limit.*max_message_bytes on both sides"
            with pytest.raises(InvalidArgumentError, match=message), translated(running.address):
                _generate_large(client, options, size=20_000)
        assert generate(client, ChannelOptions(running.address)) == "ab", "the next request works"


def _generate_large(client: Kind, options: ChannelOptions, size: int) -> None:
    request = pb.GenerateRequest(decoding=pb.Decoding(stop=["x" * size]))
    if client == "sync":
        with sync_channel(options) as channel:
            stub_of(channel).Generate(request)
        return

    async def call() -> None:
        async with aio_channel(options) as channel:
            await stub_of(channel).Generate(request)

    asyncio.run(call())


def test_large_request_is_retried() -> None:
    act = Raise(UnavailableError("not yet"), None)
    with serving(act) as running:
        _generate_large("sync", ChannelOptions(running.address), size=3_000_000)
    assert act.calls == 2


def test_very_long_error_message_is_truncated() -> None:
    names = ", ".join(f"layers.{index}.attention.wqkv.lora_A" for index in range(5000))
    with (
        serving(Raise(NotFoundError(f"ünbound: {names}", **{f"k{i}": "v" * 999 for i in range(50)}))) as running,
        pytest.raises(NotFoundError, match=r"ünbound: layers\.0") as caught,
        translated(),
    ):
        generate("sync", ChannelOptions(running.address))
    assert caught.value.message.endswith(" ...")
    status = to_status(caught.value, "r")
    assert status.ByteSize() < 6000


def test_calls_over_limit_are_refused_as_overload() -> None:
    entered, release = threading.Event(), threading.Event()

    def finish() -> pb.GenerateResponse:
        entered.set()
        release.wait(10)
        return pb.GenerateResponse(text="finished")

    class Slow(stubs.GenerationServiceServicer):
        async def Generate(self, request: Any, context: Any) -> Any:  # noqa: N802
            return await asyncio.to_thread(finish)

    with serving(servicer=Slow(), options=ServerOptions(max_concurrent_calls=1)) as running:
        channel_options = ChannelOptions(running.address, health_check=False)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            first = pool.submit(generate, "sync", channel_options)
            assert entered.wait(10)
            with pytest.raises(OverloadedError), translated():
                generate("sync", channel_options)
            release.set()
            assert first.result(10) == "finished"
        assert _admitted(channel_options) == "finished"


def _admitted(options: ChannelOptions) -> str:
    """Return an answer as soon as there is room: an ended call is uncounted a moment after its answer."""
    deadline = time.monotonic() + 10
    while True:
        try:
            with translated():
                return generate("sync", options)
        except OverloadedError:
            assert time.monotonic() < deadline
