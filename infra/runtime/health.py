"""grpc.health.v1 for sync and aio servers, whose watchers do not hold up a graceful stop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
OVERALL = ""


class SyncHealth(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Health of a server of threads, none of which a watcher occupies.

    Written out: grpcio's own holds a lock while it sends, which the thread that must confirm the sending may want.
    """

    def __init__(self) -> None:
        self._statuses: dict[str, int] = {OVERALL: NOT_SERVING}
        self._watchers: set[_Watcher] = set()
        self._lock = threading.Lock()
        self._shut_down = False

    def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Return the status of a service; NOT_FOUND for a service that is not here."""
        status = self._statuses.get(request.service)
        if status is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service[:80]!r} here")
        return health_pb2.HealthCheckResponse(status=status)

    def Watch(self, request: Any, context: Any, send: Callable[[Any], None]) -> None:  # noqa: N802
        """Send the status of a service now and whenever it changes."""
        watcher = _Watcher(request.service, send)
        with self._lock:
            self._watchers.add(watcher)
        context.add_callback(lambda: self._forget(watcher))
        self._tell(watcher)

    # grpcio hands a function marked so a callback to send with, and takes the thread back when it returns.
    Watch.experimental_non_blocking = True  # type: ignore[attr-defined]

    def set(self, service: str, status: int) -> None:
        """Change the status of a service."""
        with self._lock:
            self._statuses[service] = status
            watchers = list(self._watchers)
        for watcher in watchers:
            self._tell(watcher)

    def shut_down(self) -> bool:
        """Say NOT_SERVING for good, and end every watch. Return whether anyone watched."""
        with self._lock:
            self._statuses = dict.fromkeys(self._statuses, NOT_SERVING)
            self._shut_down = True
            watchers = list(self._watchers)
        for watcher in watchers:
            self._tell(watcher)
        return bool(watchers)

    def _tell(self, watcher: _Watcher) -> None:
        with watcher.lock:
            with self._lock:
                status, last = self._statuses.get(watcher.service, SERVICE_UNKNOWN), self._shut_down
            if not watcher.ended and status != watcher.told:
                watcher.told = status
                watcher.send(health_pb2.HealthCheckResponse(status=status))
            if not watcher.ended and last:
                watcher.ended = True
                watcher.send(None)

    def _forget(self, watcher: _Watcher) -> None:
        with self._lock:
            self._watchers.discard(watcher)


@dataclass(eq=False)
class _Watcher:
    """One who watches a service; `lock` is held while sending, for a call takes one message at a time."""

    service: str
    send: Callable[[Any], None]
    lock: threading.Lock = field(default_factory=threading.Lock)
    told: int | None = None
    ended: bool = False


class AioHealth(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """The same for aio, written out: grpcio's own forgets all watchers of a service when one of them leaves."""

    def __init__(self) -> None:
        self._statuses: dict[str, int] = {OVERALL: NOT_SERVING}
        self._changed = asyncio.Event()
        self._watchers = 0
        self._shut_down = False

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Return the status of a service; NOT_FOUND for a service that is not here."""
        status = self._statuses.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service[:80]!r} here")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802
        """Send the status of a service now and whenever it changes."""
        told = None
        self._watchers += 1
        try:
            while True:
                changed, last = self._changed, self._shut_down
                status = self._statuses.get(request.service, SERVICE_UNKNOWN)
                if status != told:
                    told = status
                    await context.write(health_pb2.HealthCheckResponse(status=status))
                if last:
                    return
                await changed.wait()
        finally:
            self._watchers -= 1

    def set(self, service: str, status: int) -> None:
        """Change the status of a service."""
        self._statuses[service] = status
        self._changed.set()
        self._changed = asyncio.Event()

    def shut_down(self) -> bool:
        """Say NOT_SERVING for good, and end every watch. Return whether anyone watched."""
        self._shut_down = True
        for service in list(self._statuses):
            self.set(service, NOT_SERVING)
        return self._watchers > 0
