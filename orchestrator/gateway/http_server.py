"""The gateway's HTTP server, on the event loop of the orchestrator."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import uvicorn
from starlette.types import ASGIApp

from infra.runtime.addresses import bind_error, split_address, with_port
from infra.runtime.logs import get_logger
from infra.runtime.settings import ServerOptions

log = get_logger(__name__)

ADDRESS_SETTING = "gateway_address"
_POLL_S = 0.005


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the process has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclass(frozen=True)
class HttpServer:
    """A running server: its bound address."""

    address: str
    _server: uvicorn.Server

    def request_stop(self) -> None:
        """Stop accepting connections; running requests have the grace period. Called on: any thread, or a handler."""
        self._server.should_exit = True


@asynccontextmanager
async def serving(app: ASGIApp, address: str, options: ServerOptions) -> AsyncIterator[HttpServer]:
    """Serve `app` at host:port, with the TLS files and the grace period of `options`; yield the running server.

    Raises ConfigurationError if the address cannot be bound.
    """
    place = _bind(address)
    server = _Server(_config(app, options))
    task = asyncio.create_task(server.serve([place]))
    try:
        while not (server.started or task.done()):
            await asyncio.sleep(_POLL_S)
        bound = with_port(address, place.getsockname()[1])
        log.info("gateway_serving", address=bound, tls=options.tls_certificate is not None)
        yield HttpServer(bound, server)
    finally:
        server.should_exit = True
        await task


def _config(app: ASGIApp, options: ServerOptions) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        ssl_certfile=options.tls_certificate,
        ssl_keyfile=options.tls_key,
        ssl_ca_certs=None if options.tls_client_ca is None else str(options.tls_client_ca),
        ssl_cert_reqs=ssl.CERT_NONE if options.tls_client_ca is None else ssl.CERT_REQUIRED,
        timeout_graceful_shutdown=round(options.shutdown_grace_s),
    )


def _bind(address: str) -> socket.socket:
    host, port = split_address(address, ADDRESS_SETTING)
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(place)
    except OSError as error:
        raise bind_error(address, ADDRESS_SETTING, error.strerror or str(error)) from error
    return bound
