"""grpc.health.v1 for sync and aio servers, whose watchers do not hold up a graceful stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
OVERALL = ""


class SyncHealth(health.HealthServicer):  # type: ignore[misc]
    """grpcio's servicer, which watches without a thread for each watcher; all watches end at shutdown."""

    def __init__(self) -> None:
        super().__init__(experimental_non_blocking=True)
        self.set(OVERALL, NOT_SERVING)

    def Watch(  # noqa: N802
        self, request: Any, context: Any, send_response_callback: Callable[[Any], None] | None = None
    ) -> Any:
        """Send the status of a service now and whenever it changes."""
        if send_response_callback is None:
            return super().Watch(request, context)
        return super().Watch(request, context, _once_ended(send_response_callback))

    def shut_down(self) -> None:
        """Say NOT_SERVING for good, and end every watch."""
        self.enter_graceful_shutdown()
        with self._lock:
            watchers = [watcher for watchers in self._send_response_callbacks.values() for watcher in watchers]
        for watcher in watchers:
            watcher(None)


class AioHealth(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """The same for aio, written out: grpcio's own forgets all watchers of a service when one of them leaves."""

    def __init__(self) -> None:
        self._statuses: dict[str, int] = {OVERALL: NOT_SERVING}
        self._changed = asyncio.Event()
        self._shut_down = False

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Return the status of a service; NOT_FOUND for a service that is not here."""
        status = self._statuses.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service[:80]!r} here")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Send the status of a service now and whenever it changes."""
        last = None
        while True:
            changed = self._changed
            status = self._statuses.get(request.service, SERVICE_UNKNOWN)
            if status != last:
                yield health_pb2.HealthCheckResponse(status=status)
                last = status
            if self._shut_down:
                return
            await changed.wait()

    def set(self, service: str, status: int) -> None:
        """Change the status of a service."""
        self._statuses[service] = status
        self._changed.set()
        self._changed = asyncio.Event()

    def shut_down(self) -> None:
        """Say NOT_SERVING for good, and end every watch."""
        self._shut_down = True
        for service in list(self._statuses):
            self.set(service, NOT_SERVING)


def _once_ended(send: Callable[[Any], None]) -> Callable[[Any], None]:
    """Return `send` made deaf after the None that ends its stream: grpcio's servicer sends it again on close."""
    ended = False

    def send_once(response: Any) -> None:
        nonlocal ended
        if not ended:
            ended = response is None
            send(response)

    return send_once
