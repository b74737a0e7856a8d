"""What every request passes before its route: request id, token, limits on bodies and concurrency, metrics, log."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from http import HTTPMethod, HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra.runtime.error_table import REQUEST_ID_KEY
from infra.runtime.logs import bind_request_id, get_logger, new_request_id, valid_request_id
from infra.runtime.security import AUTHORIZATION_KEY, token_matches
from orchestrator.gateway import metrics
from orchestrator.gateway.errors import ErrorReply

log = get_logger(__name__)

HEALTH_PATH = "/health"
#: The values of the metrics' label: callers may send any word as a method, and each would be a time series of its own.
_METHODS = frozenset(HTTPMethod)
#: A body arrives within this time, or its connection is given up: an idle upload would otherwise occupy its place.
_BODY_TIMEOUT_S = 60.0
#: Bytes of a refused body that are read and dropped, so that clients which send first and read later see the refusal
#: instead of a closed connection.
_DRAINED_BYTES = 256 * 2**20


@dataclass(frozen=True)
class GuardPolicy:
    """The token that every request but health checks must carry (None: none), and the limits of requests."""

    token: str | None = field(repr=False)
    max_body_bytes: int
    max_requests: int


class Guard:
    """Wraps the application. Called on: one event loop."""

    def __init__(self, app: ASGIApp, policy: GuardPolicy) -> None:
        self._app = app
        self._policy = policy
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = _ServedRequest(scope, send)
        self._running += 1
        try:
            await self._serve(request, receive)
        finally:
            self._running -= 1
            request.finish()

    async def _serve(self, request: _ServedRequest, receive: Receive) -> None:
        refusal = self._refusal(request)
        body: bytes | ErrorReply = b""
        if refusal is None:
            body = await self._body(request, receive)
        reply = refusal or (body if isinstance(body, ErrorReply) else None)
        if reply is not None:
            await reply.response()(request.scope, receive, request.send)
            return
        replayed = _replayed(body if isinstance(body, bytes) else b"", receive)
        try:
            await self._app(request.scope, replayed, request.send)
        except Exception:
            # Starlette raises what it answered with 500 once more, for servers that log it; `reply_to` has.
            if not request.has_status:
                raise

    def _refusal(self, request: _ServedRequest) -> ErrorReply | None:
        if request.scope["path"] == HEALTH_PATH:
            return None
        if self._policy.token is not None and not _carries(request.headers, self._policy.token):
            return ErrorReply(
                HTTPStatus.UNAUTHORIZED,
                "send the header 'Authorization: Bearer TOKEN' of this server",
                "invalid_api_key",
            )
        if self._running > self._policy.max_requests:
            return ErrorReply(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"{self._policy.max_requests} requests are being served; try again in a moment",
                "queue_full",
            )
        return None

    async def _body(self, request: _ServedRequest, receive: Receive) -> bytes | ErrorReply:
        """Return the body, or the refusal of one that is too large or too slow."""
        limit = self._policy.max_body_bytes
        declared = request.headers.get("content-length", "")
        is_too_large = declared.isdigit() and int(declared) > limit
        chunks: list[bytes] = []
        size, has_more = 0, True
        try:
            async with asyncio.timeout(_BODY_TIMEOUT_S):
                while has_more and size <= limit + _DRAINED_BYTES:
                    message = await receive()
                    has_more = message["type"] == "http.request" and message.get("more_body", False)
                    chunk = message.get("body", b"")
                    size += len(chunk)
                    is_too_large = is_too_large or size > limit
                    chunks = [] if is_too_large else [*chunks, chunk] if chunk else chunks
        except TimeoutError:
            return ErrorReply(HTTPStatus.REQUEST_TIMEOUT, f"the body took over {_BODY_TIMEOUT_S:.0f} s", "timeout")
        if is_too_large:
            return ErrorReply(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the body is over {limit} bytes; send fewer or smaller images",
                "request_too_large",
            )
        return b"".join(chunks)


class _ServedRequest:
    """One request being served: its id, its status, its metrics and its line in the log."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.scope = scope
        self.headers = Headers(scope=scope)
        given = self.headers.get(REQUEST_ID_KEY, "")
        self._id = given if valid_request_id(given) else new_request_id()
        self._send = send
        self._status = 0
        self._started = time.perf_counter()
        bind_request_id(self._id)
        metrics.requests_running.inc()

    @property
    def has_status(self) -> bool:
        """Whether the response has begun."""
        return self._status != 0

    async def send(self, message: Message) -> None:
        """Send a part of the response, with the request id among its headers."""
        if message["type"] == "http.response.start":
            self._status = int(message["status"])
            MutableHeaders(scope=message)[REQUEST_ID_KEY] = self._id
        await self._send(message)

    def finish(self) -> None:
        """Count and log the request. Status 0: the client left before there was one."""
        seconds = time.perf_counter() - self._started
        route = getattr(self.scope.get("route"), "path", "other")
        method = self.scope["method"] if self.scope["method"] in _METHODS else "other"
        metrics.requests_running.dec()
        metrics.requests_total.labels(route, method, str(self._status)).inc()
        metrics.request_seconds.labels(route).observe(seconds)
        if self.scope["path"] != HEALTH_PATH:
            log.info("http_request", method=method, route=route, status=self._status, seconds=round(seconds, 4))
        bind_request_id("")


def _carries(headers: Headers, token: str) -> bool:
    values = headers.getlist(AUTHORIZATION_KEY)
    return len(values) == 1 and token_matches(values[0].encode("latin-1", errors="replace"), token)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a channel that delivers a body that was read already, then what else arrives: the disconnection."""
    is_delivered = False

    async def replay() -> Message:
        nonlocal is_delivered
        if is_delivered:
            return await receive()
        is_delivered = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
