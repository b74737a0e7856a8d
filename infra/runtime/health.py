"""grpc.health.v1, with watches that end when the server stops.

grpcio's own aio servicer removes all watchers of a service when one of them disconnects, and keeps watches open during
a graceful stop, which then lasts the whole grace period.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
OVERALL = ""


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """The status of each service of a server. Called on: the server's event loop."""

    def __init__(self) -> None:
        self._statuses: dict[str, int] = {OVERALL: NOT_SERVING}
        self._changed = asyncio.Event()
        self._watchers = 0
        self._shut_down = False

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Return the status of a service. NOT_FOUND for a service that this server does not have."""
        status = self._statuses.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service[:80]!r} here")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802
        """Send the status of a service now and whenever it changes."""
        last_sent = None
        self._watchers += 1
        try:
            while True:
                changed, is_last = self._changed, self._shut_down
                status = self._statuses.get(request.service, SERVICE_UNKNOWN)
                if status != last_sent:
                    last_sent = status
                    await context.write(health_pb2.HealthCheckResponse(status=status))
                if is_last:
                    return
                await changed.wait()
        finally:
            self._watchers -= 1

    def set(self, service: str, status: int) -> None:
        """Change the status of a service."""
        self._statuses[service] = status
        # One event per change: a watcher that is still writing the last status finds the new one on its next turn.
        self._changed.set()
        self._changed = asyncio.Event()

    def shut_down(self) -> bool:
        """Set every service to NOT_SERVING for good, and end every watch. Return whether there were watchers."""
        self._shut_down = True
        for service in list(self._statuses):
            self.set(service, NOT_SERVING)
        return self._watchers > 0
