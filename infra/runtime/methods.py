"""The methods of a server: collected from generated code, guarded, and answered for before the server is ready."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import grpc

from infra.contract.errors import UnavailableError
from infra.runtime.calls import CallPolicy, Handler, refusal


class Adder(Protocol):
    """A generated `add_<Service>Servicer_to_server`."""

    def __call__(self, servicer: Any, server: Any, /) -> None:
        """Add a servicer's methods to a server."""


class Methods(grpc.GenericRpcHandler):
    """Every method of a server. Services may join while it runs; until `open`, only the unguarded are answered."""

    def __init__(self, guard: Callable[[str, Handler, CallPolicy], Handler], policy: CallPolicy, aio: bool) -> None:
        self._guard = guard
        self._policy = policy
        self._refusal = refusal(UnavailableError("the server is starting; try again in a moment"), aio)
        self._guarded: dict[str, Handler] = {}
        self._unguarded: dict[str, Handler] = {}
        self.open = False

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
        return self._guarded.get(method) if self.open else self._refusal


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
