"""The parts of a gRPC method handler: its behavior, its request decoder, and a copy with another behavior."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from infra.contract.errors import InvalidArgumentError

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


def behavior_of(handler: Handler) -> Callable[[Any, Any], Any]:
    """Return the function that serves a method, for any of the four kinds of methods."""
    kinds = (handler.unary_unary, handler.unary_stream, handler.stream_unary, handler.stream_stream)
    return next(behavior for behavior in kinds if behavior is not None)


def decoder_of(handler: Handler) -> Callable[[Any], Any]:
    """Return the function that parses a handler's raw request, or stream of raw requests."""
    parse = handler.request_deserializer

    def decode(raw: bytes) -> Any:
        try:
            return raw if parse is None else parse(raw)
        except DecodeError as error:
            raise InvalidArgumentError("", f"the request is not a message of this method: {error}") from error

    def decode_each(requests: Any) -> Any:
        return _decoded(requests, decode) if hasattr(requests, "__aiter__") else map(decode, requests)

    return decode_each if handler.request_streaming else decode


async def _decoded(requests: AsyncIterator[bytes], decode: Callable[[bytes], Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield decode(request)


def rebuilt(handler: Handler, behavior: Callable[..., Any]) -> Handler:
    """Return a handler of the same kind that serves raw requests with `behavior`."""
    match handler.request_streaming, handler.response_streaming:
        case False, False:
            build: Callable[..., Handler] = grpc.unary_unary_rpc_method_handler
        case False, True:
            build = grpc.unary_stream_rpc_method_handler
        case True, False:
            build = grpc.stream_unary_rpc_method_handler
        case _:
            build = grpc.stream_stream_rpc_method_handler
    return build(behavior, response_serializer=handler.response_serializer)
