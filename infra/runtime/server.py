"""gRPC servers, sync and aio: bound, guarded, with health and reflection, and a graceful end.

server = sync_server(settings.server, workers=16)
server.start()                     # health answers NOT_SERVING, all else UNAVAILABLE: the model may now load
server.add(servicer, add_RetrievalServiceServicer_to_server, "loraretriever.v1.RetrievalService")
server.serve_forever()             # SERVING, ready file; returns after a stop signal, running calls finished
"""

from __future__ import annotations

import asyncio
import queue
import time
from concurrent import futures
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc  # type: ignore[import-untyped]

from infra.runtime.addresses import bind_error, check_free, with_port
from infra.runtime.calls import CallPolicy, guard_aio, guard_sync
from infra.runtime.health import NOT_SERVING, OVERALL, SERVING, AioHealth, SyncHealth
from infra.runtime.lifecycle import on_stop, ready_file
from infra.runtime.logs import get_logger
from infra.runtime.methods import Adder, Methods
from infra.runtime.security import server_credentials
from infra.runtime.settings import ServerOptions

log = get_logger(__name__)

MAX_METADATA_BYTES = 32 * 2**10
POLL_S = 0.02
TURN_AWAY_S = 0.25


class GrpcServer:
    """A server of threads. As a context manager it serves within, for tests and short-lived servers."""

    def __init__(self, options: ServerOptions, workers: int) -> None:
        """Bind the address; ConfigurationError when that cannot be done."""
        self._options = options
        self._health = SyncHealth()
        self._policy = CallPolicy(options.token, options.max_call_s)
        self._methods = Methods(guard_sync, self._policy, aio=False)
        self._server = grpc.server(
            futures.ThreadPoolExecutor(workers, thread_name_prefix="grpc"),
            handlers=[self._methods],
            options=_channel_arguments(options),
            maximum_concurrent_rpcs=options.max_concurrent_calls,
        )
        self._stop_requests: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._services: tuple[str, ...] = ()
        self._started = False
        self.address = _bind(self._server, options)
        self._methods.add_unguarded(health_pb2_grpc.add_HealthServicer_to_server, self._health)

    def add(self, servicer: Any, adder: Adder, full_service_name: str) -> None:
        """Add a service; its health is NOT_SERVING until serving()."""
        self._methods.add(adder, servicer)
        self._services = (*self._services, full_service_name)
        self._health.set(full_service_name, NOT_SERVING)

    def start(self) -> None:
        """Listen. Until serving(), every method but health is UNAVAILABLE."""
        if not self._started:
            self._started = True
            self._server.start()

    def serving(self) -> None:
        """Let calls in: health becomes SERVING."""
        self.start()
        names = self._services
        servicer = reflection.ReflectionServicer((*names, health.SERVICE_NAME, reflection.SERVICE_NAME))
        self._methods.add(reflection_pb2_grpc.add_ServerReflectionServicer_to_server, servicer)
        self._methods.open()
        for name in (*names, OVERALL):
            self._health.set(name, SERVING)
        log.info("serving", address=self.address, services=list(names))

    def serve_forever(self) -> None:
        """Serve until a stop signal or request_stop(), then stop gracefully."""
        with on_stop(self.request_stop):
            self.serving()
            with ready_file(self._options.ready_file, self.address):
                self._stop_requests.get()
        self.stop()

    def request_stop(self) -> None:
        """Make serve_forever() return. From any thread, or a signal handler."""
        self._stop_requests.put(None)

    def stop(self) -> None:
        """Refuse new calls, let running ones finish for shutdown_grace_s at most, then cancel them."""
        log.info("stopping", address=self.address)
        self._methods.close()
        drain = _Drain(self._policy, self._health.shut_down(), self._options.shutdown_grace_s)
        while drain.goes_on():
            time.sleep(POLL_S)
        self._server.stop(drain.left_s()).wait()

    def __enter__(self) -> Self:
        self.serving()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class AioGrpcServer:
    """A server on the running event loop. As an async context manager it serves within."""

    def __init__(self, options: ServerOptions) -> None:
        """Bind the address; ConfigurationError when that cannot be done."""
        self._options = options
        self._health = AioHealth()
        self._policy = CallPolicy(options.token, options.max_call_s)
        self._methods = Methods(guard_aio, self._policy, aio=True)
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

    def add(self, servicer: Any, adder: Adder, full_service_name: str) -> None:
        """Add a service; its health is NOT_SERVING until serving()."""
        self._methods.add(adder, servicer)
        self._services = (*self._services, full_service_name)
        self._health.set(full_service_name, NOT_SERVING)

    async def start(self) -> None:
        """Listen. Until serving(), every method but health is UNAVAILABLE."""
        if not self._started:
            self._started = True
            await self._server.start()

    async def serving(self) -> None:
        """Let calls in: health becomes SERVING."""
        await self.start()
        names = self._services
        servicer = reflection.aio.ReflectionServicer((*names, health.SERVICE_NAME, reflection.SERVICE_NAME))
        self._methods.add(reflection_pb2_grpc.add_ServerReflectionServicer_to_server, servicer)
        self._methods.open()
        for name in (*names, OVERALL):
            self._health.set(name, SERVING)
        log.info("serving", address=self.address, services=list(names))

    async def serve(self) -> None:
        """Serve until a stop signal or request_stop(), then stop gracefully."""
        with on_stop(self.request_stop):
            await self.serving()
            with ready_file(self._options.ready_file, self.address):
                await self._stop_requested.wait()
        await self.stop()

    def request_stop(self) -> None:
        """Make serve() return. From any thread, or a signal handler."""
        self._loop.call_soon_threadsafe(self._stop_requested.set)

    async def stop(self) -> None:
        """Refuse new calls, let running ones finish for shutdown_grace_s at most, then cancel them."""
        log.info("stopping", address=self.address)
        self._methods.close()
        drain = _Drain(self._policy, self._health.shut_down(), self._options.shutdown_grace_s)
        while drain.goes_on():
            await asyncio.sleep(POLL_S)
        await self._server.stop(drain.left_s())

    async def __aenter__(self) -> Self:
        await self.serving()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


def sync_server(options: ServerOptions, workers: int) -> GrpcServer:
    """Return a bound server whose handlers run on `workers` threads."""
    return GrpcServer(options, workers)


def aio_server(options: ServerOptions) -> AioGrpcServer:
    """Return a bound server whose handlers run on the event loop that calls this."""
    return AioGrpcServer(options)


class _Drain:
    """The time between the refusal of new calls and the closing of connections.

    gRPC cancels the calls that it finds unanswered on a connection it closes, and a client does not send those again.
    So calls that are on their way are first refused as UNAVAILABLE, until clients that watch had time to turn away.
    """

    def __init__(self, policy: CallPolicy, watched: bool, grace_s: float) -> None:
        self._policy = policy
        now = time.monotonic()
        self._not_before = now + (min(TURN_AWAY_S, grace_s) if watched else 0)
        self._not_after = now + grace_s

    def goes_on(self) -> bool:
        """Whether calls are still to be awaited, or clients."""
        now = time.monotonic()
        return now < self._not_before or (len(self._policy.running) > 0 and now < self._not_after)

    def left_s(self) -> float:
        """Return what is left of the grace period, in seconds."""
        return max(self._not_after - time.monotonic(), 0)


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
        ("grpc.so_reuseport", 0),
        ("grpc.max_connection_age_ms", round(options.max_connection_age_s * 1000)),
        ("grpc.max_connection_age_grace_ms", round(options.max_connection_age_grace_s * 1000)),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.http2.ping_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ]
