"""The methods of a server: collected from generated code, guarded, and answered for before the server is ready."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import grpc

from infra.contract.errors import UnavailableError
from infra.runtime.calls import CallPolicy, refusal
from infra.runtime.handlers import Handler


class Adder(Protocol):
    """A generated `add_<Service>Servicer_to_server`."""

    def __call__(self, servicer: Any, server: Any, /) -> None:
        """Add a servicer's methods to a server."""


class Methods(grpc.GenericRpcHandler):
    """Every method of a server. Services may join while it runs; unless it is open, only the unguarded are answered."""

    def __init__(self, guard: Callable[[str, Handler, CallPolicy], Handler], policy: CallPolicy, aio: bool) -> None:
        self._guard = guard
        self._policy = policy
        self._aio = aio
        self._guarded: dict[str, Handler] = {}
        self._unguarded: dict[str, Handler] = {}
        self._refusal: Handler | None = self._unavailable("the server is starting; try again in a moment")

    def open(self) -> None:
        """Let calls in."""
        self._refusal = None

    def close(self) -> None:
        """Refuse new calls; those under way go on."""
        self._refusal = self._unavailable("the server is stopping; try another one, or this one in a moment")

    def add(self, adder: Adder, servicer: Any) -> None:
        """Take over the methods that a generated adder adds, each guarded by the policy."""
        for method, handler in _collect(adder, servicer).items():
            self._guarded[method] = self._guard(method, handler, self._policy)

    def add_unguarded(self, adder: Adder, servicer: Any) -> None:
        """Take over methods that anyone may call at any time."""
        self._unguarded.update(_collect(adder, servicer))

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        """Return the handler of a method; None when there is none."""
        method = handler_call_details.method
        if method in self._unguarded:
            return self._unguarded[method]
        return self._refusal or self._guarded.get(method)

    def _unavailable(self, message: str) -> Handler:
        return refusal(UnavailableError(message), self._aio)


class _Collector:
    """Stands in for a server before a generated adder."""

    def __init__(self) -> None:
        self.methods: dict[str, Handler] = {}

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Take nothing: the same methods come registered."""

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Handler]) -> None:
        """Take the methods of a service."""
        self.methods.update({f"/{service_name}/{name}": handler for name, handler in method_handlers.items()})


def _collect(adder: Adder, servicer: Any) -> dict[str, Handler]:
    collector = _Collector()
    adder(servicer, collector)
    return collector.methods
