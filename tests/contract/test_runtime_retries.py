"""What the channel sends again on its own, and what it does not."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest

from infra.runtime.channel import ChannelOptions, sync_channel

SERVICE = "loraretriever.v1.RetrievalService"


class Away(grpc.GenericRpcHandler):
    """A server that records each call and returns UNAVAILABLE."""

    def __init__(self) -> None:
        self.methods: list[str] = []

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """Return the handler of any method."""

        def refuse(_request: bytes, context: grpc.ServicerContext) -> bytes:
            self.methods.append(details.method)
            context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")

        return grpc.unary_unary_rpc_method_handler(refuse)


@contextmanager
def listening(away: Away) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(1), handlers=(away,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


@pytest.mark.parametrize(
    ("method", "calls"),
    [("RetrieveAdapters", 2), ("GetAdapter", 2), ("CreateAdapter", 1), ("DeleteAdapter", 1)],
)
def test_calls_are_retried_unless_they_create_or_delete_adapters(method: str, calls: int) -> None:
    away = Away()
    with listening(away) as address:
        options = ChannelOptions(address, max_attempts=2, health_check=False)
        with sync_channel(options) as channel, pytest.raises(grpc.RpcError, match="not yet"):
            channel.unary_unary(f"/{SERVICE}/{method}")(b"")
    assert away.methods == [f"/{SERVICE}/{method}"] * calls
