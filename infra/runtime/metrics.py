"""Prometheus metrics of the process: gRPC calls by method and status, and the metrics that a tier adds."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, make_wsgi_app

from infra.contract.errors import ConfigurationError
from infra.runtime.addresses import bind_error, split_address
from infra.runtime.security import token_matches

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

calls_total = Counter("loraretriever_grpc_calls", "gRPC calls served, by method and status code.", ["method", "code"])
call_seconds = Histogram(
    "loraretriever_grpc_call_seconds",
    "Seconds from a gRPC call's arrival to its end, by method.",
    ["method"],
    buckets=SECONDS_BUCKETS,
)
calls_running = Gauge("loraretriever_grpc_calls_running", "gRPC calls being served, by method.", ["method"])


@dataclass(frozen=True)
class MetricsServer:
    """A running metrics endpoint."""

    address: str
    _server: WSGIServer

    def close(self) -> None:
        """Stop the endpoint."""
        self._server.shutdown()
        self._server.server_close()


def serve_metrics(
    address: str,
    *,
    token: str | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
    client_ca: Path | None = None,
    registry: CollectorRegistry = REGISTRY,
) -> MetricsServer:
    """Serve `/metrics` on host:port (port 0: a free port) from a thread, with the tier's own token and TLS files."""
    host, port = split_address(address, "metrics_address")
    app: WSGIApplication = make_wsgi_app(registry)
    if token is not None:
        app = _guarded(app, token)
    try:
        server = make_server(host, port, app, _Server, _QuietHandler)
    except OSError as error:
        raise bind_error(address, "metrics_address", error.strerror or str(error)) from error
    if certificate is not None and key is not None:
        server.socket = _tls(certificate, key, client_ca).wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return MetricsServer(f"{host}:{server.server_port}", server)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: Prometheus scrapes every few seconds."""


def _guarded(app: WSGIApplication, token: str) -> WSGIApplication:
    def guarded(environment: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        header = str(environment.get("HTTP_AUTHORIZATION", "")).encode("latin-1", errors="replace")
        if token_matches(header, token):
            return app(environment, start_response)
        start_response("401 Unauthorized", [("WWW-Authenticate", "Bearer"), ("Content-Type", "text/plain")])
        return [b"send the header 'Authorization: Bearer TOKEN'\n"]

    return guarded


def _tls(certificate: Path, key: Path, client_ca: Path | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password="")
        if client_ca is not None:
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"the TLS files of the metrics endpoint do not load: {error}") from error
    return context
