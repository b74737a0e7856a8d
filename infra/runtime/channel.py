"""gRPC channels, sync and aio, with load balancing, retries and keepalive.

A channel adds the bearer token, the request id and a default deadline to every call.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from infra.contract.errors import ConfigurationError
from infra.runtime.deadline import clipped
from infra.runtime.error_table import MAX_METADATA_BYTES, REQUEST_ID_KEY
from infra.runtime.logs import new_request_id, request_id
from infra.runtime.security import AUTHORIZATION_KEY, channel_credentials, check_configured_token

# A retry of a call that had already succeeded on the server would fail with ALREADY_EXISTS or NOT_FOUND.
_NOT_RETRIED = [
    {"service": "loraretriever.v1.RetrievalService", "method": method} for method in ("CreateAdapter", "DeleteAdapter")
]

Metadata = tuple[tuple[str, str | bytes], ...]


@dataclass(frozen=True)
class ChannelOptions:
    """The address of a service, and how to call it.

    Attributes:
        target: host:port, unix:/path, or several comma-separated IPv4 host:port.
        tls: Use TLS. Any TLS file turns it on as well.
        tls_ca: PEM file of the CA of the server's certificate; None: the system's CAs.
        tls_certificate: PEM file of the client certificate, if the server requires one.
        tls_key: PEM file of its private key.
        tls_server_name: Name that the server's certificate must have, if it is not that of the target.
        token: Bearer token of every call.
        max_message_bytes: Largest message in either direction.
        default_timeout_s: Timeout of calls that do not give one; None: no timeout.
        max_attempts: Attempts of a call, the first one included. A call is retried if it fails with UNAVAILABLE before
            the answer begins, unless it creates or deletes an adapter.
        keepalive_time_s: Seconds without traffic after which the channel pings the server. Servers close a connection
            with pings less than 5 s apart.
        ping_timeout_s: Seconds without a reply to a ping after which the connection is closed, and its calls fail.
        max_reconnect_backoff_s: Longest pause between attempts to connect.
        health_check: Send calls only to servers that report SERVING. The watch counts as one of the server's
            concurrent calls.
    """

    target: str
    tls: bool = False
    tls_ca: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_server_name: str = ""
    token: str | None = field(default=None, repr=False)
    max_message_bytes: int = 64 * 2**20
    default_timeout_s: float | None = 60.0
    max_attempts: int = 4
    keepalive_time_s: float = 10.0
    ping_timeout_s: float = 3.0
    max_reconnect_backoff_s: float = 5.0
    health_check: bool = True

    def __post_init__(self) -> None:
        check_configured_token(self.token)


def sync_channel(options: ChannelOptions) -> grpc.Channel:
    """Return a channel for generated stubs. Calls raise grpc.RpcError: see error_table.translated()."""
    arguments = _arguments(options)
    credentials = _credentials(options)
    if credentials is None:
        raw = grpc.insecure_channel(_uri(options.target), arguments)
    else:
        raw = grpc.secure_channel(_uri(options.target), credentials, arguments)
    return _SyncChannel(raw, _Defaults(options))


def aio_channel(options: ChannelOptions) -> grpc.aio.Channel:
    """Return a channel of the running event loop. Its calls raise grpc.RpcError as well."""
    arguments = _arguments(options)
    credentials = _credentials(options)
    if credentials is None:
        raw = grpc.aio.insecure_channel(_uri(options.target), arguments)
    else:
        raw = grpc.aio.secure_channel(_uri(options.target), credentials, arguments)
    return _AioChannel(raw, _Defaults(options))


def service_config(options: ChannelOptions) -> str:
    """Return a channel's service config as JSON: round-robin balancing, health checks, and the retry policy."""
    config: dict[str, object] = {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": options.max_attempts,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            },
            {"name": _NOT_RETRIED},
        ]
        if options.max_attempts > 1
        else [],
    }
    if options.health_check:
        config["healthCheckConfig"] = {"serviceName": ""}
    return json.dumps(config)


class _Defaults:
    """Adds token, request id and timeout to calls. A call ends no later than the call being served, if there is one."""

    def __init__(self, options: ChannelOptions) -> None:
        self._timeout_s = options.default_timeout_s
        token = options.token
        self._metadata: Metadata = () if token is None else ((AUTHORIZATION_KEY, f"Bearer {token}"),)

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def with_defaults(request: Any, timeout: float | None = None, metadata: Any = None, **options: Any) -> Any:
            timeout = clipped(self._timeout_s if timeout is None else timeout)
            return call(request, timeout=timeout, metadata=self._complete(tuple(metadata or ())), **options)

        return with_defaults

    def _complete(self, given: Metadata) -> Metadata:
        keys = {key for key, _ in given}
        added = tuple(pair for pair in self._metadata if pair[0] not in keys)
        if REQUEST_ID_KEY not in keys:
            added = (*added, (REQUEST_ID_KEY, request_id() or new_request_id()))
        return given + added


class _Call:
    """A method of a sync stub, with the defaults of the channel."""

    def __init__(self, inner: Any, defaults: _Defaults) -> None:
        self._call = defaults.wrap(inner)
        for name in ("with_call", "future"):
            if hasattr(inner, name):
                setattr(self, name, defaults.wrap(getattr(inner, name)))

    def __call__(self, request: Any, *args: Any, **options: Any) -> Any:
        return self._call(request, *args, **options)


class _SyncChannel(grpc.Channel):
    def __init__(self, inner: grpc.Channel, defaults: _Defaults) -> None:
        self._inner = inner
        self._defaults = defaults

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return _Call(self._inner.unary_unary(*args, **kwargs), self._defaults)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return _Call(self._inner.unary_stream(*args, **kwargs), self._defaults)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return _Call(self._inner.stream_unary(*args, **kwargs), self._defaults)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return _Call(self._inner.stream_stream(*args, **kwargs), self._defaults)

    def subscribe(self, callback: Callable[[grpc.ChannelConnectivity], None], try_to_connect: bool = False) -> None:
        self._inner.subscribe(callback, try_to_connect)

    def unsubscribe(self, callback: Callable[[grpc.ChannelConnectivity], None]) -> None:
        self._inner.unsubscribe(callback)

    def close(self) -> None:
        self._inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self.close()
        return None


class _AioChannel(grpc.aio.Channel):
    def __init__(self, inner: grpc.aio.Channel, defaults: _Defaults) -> None:
        self._inner = inner
        self._defaults = defaults

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._defaults.wrap(self._inner.unary_unary(*args, **kwargs))

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._defaults.wrap(self._inner.unary_stream(*args, **kwargs))

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return _AioStreamingCall(self._inner.stream_unary(*args, **kwargs), self._defaults)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return _AioStreamingCall(self._inner.stream_stream(*args, **kwargs), self._defaults)

    async def close(self, grace: float | None = None) -> None:
        await self._inner.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._inner.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._inner.channel_ready()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        await self.close()
        return None


class _AioStreamingCall:
    """A method of an aio stub that streams requests."""

    def __init__(self, inner: Any, defaults: _Defaults) -> None:
        self._call = defaults.wrap(inner)

    def __call__(self, request_iterator: Any = None, **options: Any) -> Any:
        return self._call(request_iterator, **options)


def _uri(target: str) -> str:
    if not target.strip():
        raise ConfigurationError("the target of a channel is empty; give host:port")
    if "," not in target:
        return target.strip()
    addresses = [address.strip() for address in target.split(",") if address.strip()]
    for address in addresses:
        try:
            ipaddress.IPv4Address(address.rpartition(":")[0])
        except ValueError:
            raise ConfigurationError(
                f"target {target!r}: several targets must each be IPv4 host:port, which {address!r} is not. "
                "For several replicas behind one DNS name, give that name"
            ) from None
    return "ipv4:" + ",".join(addresses)


def _credentials(options: ChannelOptions) -> grpc.ChannelCredentials | None:
    files = (options.tls_ca, options.tls_certificate, options.tls_key)
    if not options.tls and all(path is None for path in files):
        return None
    return channel_credentials(*files)


def _arguments(options: ChannelOptions) -> list[tuple[str, str | int]]:
    arguments: list[tuple[str, str | int]] = [
        ("grpc.service_config", service_config(options)),
        ("grpc.max_receive_message_length", options.max_message_bytes),
        ("grpc.max_send_message_length", options.max_message_bytes),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        # gRPC does not retry requests larger than this buffer, and prompts contain images.
        ("grpc.per_rpc_retry_buffer_size", options.max_message_bytes),
        # Keepalive alone did not notice a black-holed connection within 45 s; with a ping timeout of 3 s it took 13 s.
        ("grpc.keepalive_time_ms", round(options.keepalive_time_s * 1000)),
        ("grpc.keepalive_timeout_ms", round(options.ping_timeout_s * 1000)),
        ("grpc.http2.ping_timeout_ms", round(options.ping_timeout_s * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 5_000),
        ("grpc.max_reconnect_backoff_ms", round(options.max_reconnect_backoff_s * 1000)),
        ("grpc.dns_min_time_between_resolutions_ms", 10_000),
        # Channels of one process share no connections, so that closing one channel does not affect another.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
    ]
    if options.tls_server_name:
        arguments.append(("grpc.ssl_target_name_override", options.tls_server_name))
    return arguments
