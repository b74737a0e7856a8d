"""The gRPC server of every tier, with call policy, health, reflection and a graceful stop.

server = GrpcServer(settings.server)
await server.start()               # health answers NOT_SERVING, all else UNAVAILABLE: the model can load now
server.add(servicer, add_GenerationServiceServicer_to_server, "loraretriever.v1.GenerationService")
await server.serve()               # SERVING, ready file; returns after a stop signal, when running calls have ended

Handlers are coroutines. A servicer whose methods block is added with an executor, on whose threads they run.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import Executor
from types import MappingProxyType, TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc  # type: ignore[import-untyped]

from infra.runtime.addresses import bind_error, check_free, with_port
from infra.runtime.calls import CallPolicy
from infra.runtime.deadline import has_passed, seconds_until
from infra.runtime.error_table import MAX_METADATA_BYTES
from infra.runtime.health import NOT_SERVING, OVERALL, SERVING, Health
from infra.runtime.lifecycle import on_stop, ready_file
from infra.runtime.logs import get_logger
from infra.runtime.methods import Adder, Methods
from infra.runtime.security import server_credentials
from infra.runtime.settings import ServerOptions

log = get_logger(__name__)

#: How often a stopping server looks whether its calls have ended: no more than this is added to a stop.
_POLL_S = 0.02

#: How long a stopping server refuses calls before it closes connections, if clients watch its health: they move to
#: another replica within a round trip, and a quarter of a second covers that and a busy event loop.
_TURN_AWAY_S = 0.25


class GrpcServer:
    """A server on the running event loop. As an async context manager it serves within."""

    def __init__(self, options: ServerOptions) -> None:
        """Bind the address. Raises ConfigurationError when that fails."""
        self._options = options
        self._health = Health()
        self._policy = CallPolicy(options.token, options.max_call_s)
        self._methods = Methods(self._policy)
        self._server = grpc.aio.server(
            handlers=[self._methods],
            options=_channel_arguments(options),
            maximum_concurrent_rpcs=options.max_concurrent_calls,
        )
        self._loop = asyncio.get_running_loop()
        self._stop_requested = asyncio.Event()
        self._services: tuple[str, ...] = ()
        self._started = False
        self.address = _bind(self._server, options)
        self._methods.add_unguarded(health_pb2_grpc.add_HealthServicer_to_server, self._health)

    def add(self, servicer: Any, adder: Adder, full_service_name: str, executor: Executor | None = None) -> None:
        """Add a service; its health is NOT_SERVING until serving().

        With an executor the servicer's methods are plain functions, which run on the executor's threads: at most as
        many at once as it has threads; the others wait in its queue until their deadlines.
        """
        self._methods.add(adder, servicer, executor)
        self._services = (*self._services, full_service_name)
        self._health.set(full_service_name, NOT_SERVING)

    async def start(self) -> None:
        """Listen. Until serving(), every method but health is UNAVAILABLE."""
        if not self._started:
            self._started = True
            await self._server.start()

    async def serving(self) -> None:
        """Accept calls, and report SERVING."""
        await self.start()
        names = self._services
        servicer = reflection.aio.ReflectionServicer((*names, health.SERVICE_NAME, reflection.SERVICE_NAME))
        self._methods.add(reflection_pb2_grpc.add_ServerReflectionServicer_to_server, servicer)
        self._methods.open()
        for name in (*names, OVERALL):
            self._health.set(name, SERVING)
        log.info("serving", address=self.address, services=list(names))

    async def serve(self, other_addresses: Mapping[str, str] = MappingProxyType({})) -> None:
        """Serve until a stop signal or request_stop(), then stop gracefully.

        `other_addresses` of this process, by name, are put into the ready file.
        """
        with on_stop(self.request_stop):
            await self.serving()
            with ready_file(self._options.ready_file, self.address, other_addresses):
                await self._stop_requested.wait()
        await self.stop()

    def request_stop(self) -> None:
        """Make serve() return. Called on: any thread, or in a signal handler."""
        self._loop.call_soon_threadsafe(self._stop_requested.set)

    async def stop(self) -> None:
        """Refuse new calls, let running ones finish for shutdown_grace_s at most, then cancel them."""
        log.info("stopping", address=self.address)
        self._methods.close()
        drain = _Drain(self._policy, has_watchers=self._health.shut_down(), grace_s=self._options.shutdown_grace_s)
        while drain.is_waiting():
            await asyncio.sleep(_POLL_S)
        await self._server.stop(drain.remaining_s())

    async def __aenter__(self) -> Self:
        await self.serving()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


class _Drain:
    """The time between the refusal of new calls and the closing of connections.

    gRPC cancels the unanswered calls of a connection that it closes, and clients do not retry those. Calls that arrive
    late are therefore refused as UNAVAILABLE, which clients retry, until watching clients have seen NOT_SERVING.
    """

    def __init__(self, policy: CallPolicy, *, has_watchers: bool, grace_s: float) -> None:
        self._policy = policy
        now = time.monotonic()
        self._not_before = now + (min(_TURN_AWAY_S, grace_s) if has_watchers else 0)
        self._not_after = now + grace_s

    def is_waiting(self) -> bool:
        """Return whether running calls or watching clients still need time, and the grace period is not over."""
        return not has_passed(self._not_before) or (self._policy.running.count > 0 and not has_passed(self._not_after))

    def remaining_s(self) -> float:
        """Return what is left of the grace period, in seconds."""
        return seconds_until(self._not_after)


def _bind(server: Any, options: ServerOptions) -> str:
    check_free(options.address)
    try:
        if options.tls_certificate is not None and options.tls_key is not None:
            credentials = server_credentials(options.tls_certificate, options.tls_key, options.tls_client_ca)
            port = server.add_secure_port(options.address, credentials)
        else:
            port = server.add_insecure_port(options.address)
    except RuntimeError as error:
        raise bind_error(options.address, "address", "gRPC refuses the address") from error
    return with_port(options.address, port)


def _channel_arguments(options: ServerOptions) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", options.max_message_bytes),
        ("grpc.max_send_message_length", options.max_message_bytes),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        # Off, so that a second server on the same port fails instead of sharing its calls.
        ("grpc.so_reuseport", 0),
        # Clients resolve their target again only when a connection ends: without an age they never see new replicas.
        ("grpc.max_connection_age_ms", round(options.max_connection_age_s * 1000)),
        ("grpc.max_connection_age_grace_ms", round(options.max_connection_age_grace_s * 1000)),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.http2.ping_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # Channels ping every 10 s (ChannelOptions.keepalive_time_s): with gRPC's default of 300 s the server would
        # close their connections for too many pings.
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ]
