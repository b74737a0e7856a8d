"""The methods of a server: taken from generated code, guarded, and refused until the server is ready.

gRPC's own registration (`add_generic_rpc_handlers`) must happen before the server starts, and then all methods are
served at once. Here health must answer while the model still loads, services are added later, and methods are refused
again while the server drains; so the server gets this one handler, which looks methods up in a table of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from typing import Any, Protocol

import grpc

from infra.contract.errors import UnavailableError
from infra.runtime.calls import CallPolicy, guard, refusal
from infra.runtime.handlers import Handler


class Adder(Protocol):
    """A generated `add_<Service>Servicer_to_server`."""

    def __call__(self, servicer: Any, server: Any, /) -> None:
        """Add a servicer's methods to a server."""


class Methods(grpc.GenericRpcHandler):
    """Every method of a server. Services may be added while it runs; while it is closed only open methods answer."""

    def __init__(self, policy: CallPolicy) -> None:
        self._policy = policy
        self._guarded: dict[str, Handler] = {}
        self._unguarded: dict[str, Handler] = {}
        self._refusal: Handler | None = _unavailable("the server is starting; try again in a moment")

    def open(self) -> None:
        """Accept calls."""
        self._refusal = None

    def close(self) -> None:
        """Refuse new calls; running ones continue."""
        self._refusal = _unavailable("the server is stopping; try another one, or this one in a moment")

    def add(self, adder: Adder, servicer: Any, executor: Executor | None = None) -> None:
        """Add the methods of a servicer, each guarded by the policy. With an executor they run on its threads."""
        for method, handler in _methods_of(adder, servicer).items():
            self._guarded[method] = guard(method, handler, self._policy, executor)

    def add_unguarded(self, adder: Adder, servicer: Any) -> None:
        """Add methods that need no token and that answer while the server is closed."""
        self._unguarded.update(_methods_of(adder, servicer))

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        """Return the handler of a method; None when the server does not have it."""
        method = handler_call_details.method
        if method in self._unguarded:
            return self._unguarded[method]
        return self._refusal or self._guarded.get(method)


class _Collector:
    """Takes the place of a server in a generated adder."""

    def __init__(self) -> None:
        self.methods: dict[str, Handler] = {}

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Ignore the handlers: the same methods are also registered one by one."""

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Handler]) -> None:
        """Take the methods of a service."""
        self.methods.update({f"/{service_name}/{name}": handler for name, handler in method_handlers.items()})


def _methods_of(adder: Adder, servicer: Any) -> dict[str, Handler]:
    collector = _Collector()
    adder(servicer, collector)
    return collector.methods


def _unavailable(message: str) -> Handler:
    return refusal(UnavailableError(message))
