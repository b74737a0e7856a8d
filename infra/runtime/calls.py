"""What surrounds every call of a server: request id, token, deadline, error table, metrics and access log.

The same for unary and streaming methods. A request is parsed only after its caller is authenticated.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Executor
from contextlib import aclosing, asynccontextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any

import grpc

from infra.contract.errors import (
    DeadlineError,
    InternalError,
    LoraRetrieverError,
    UnimplementedError,
)
from infra.runtime import metrics
from infra.runtime.deadline import bind_deadline
from infra.runtime.error_table import DETAILS_KEY, REQUEST_ID_KEY, as_contract_error, status_code, to_status
from infra.runtime.handlers import Handler, behavior_of, decoder_of, rebuilt
from infra.runtime.logs import bind_request_id, get_logger, new_request_id, valid_request_id
from infra.runtime.security import check_token

log = get_logger(__name__)

Metadata = tuple[tuple[str, str | bytes], ...]


class RunningCalls:
    """The number of calls and of executor tasks that a server is running. Called on: any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # Guards: _count.
        self._count = 0

    @property
    def count(self) -> int:
        """Calls and executor tasks that have not ended."""
        return self._count

    def change(self, by: int) -> None:
        """Count one more (1) or one less (-1)."""
        with self._lock:
            self._count += by


@dataclass(frozen=True)
class CallPolicy:
    """What a server requires of each call: a bearer token (None: no token), and an end after `max_call_s` seconds.

    A blocking handler is not interrupted at the limit: its caller gets DEADLINE_EXCEEDED at once, and the calls it
    makes itself end by the same deadline.
    """

    token: str | None = field(default=None, repr=False)
    max_call_s: float | None = None
    running: RunningCalls = field(default_factory=RunningCalls)


@dataclass(frozen=True)
class AbortStatus:
    """A status that ends a call, with its trailers."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: Metadata


class ServedCall:
    """One call being served: its request id, and what it leaves in logs and metrics."""

    def __init__(self, method: str, context: Any, policy: CallPolicy) -> None:
        self.method = method
        self.metadata: Metadata = tuple(context.invocation_metadata() or ())
        self.request_id = _request_id(self.metadata)
        self.echoed = False
        self._policy = policy
        self._peer = context.peer()
        self._started = time.perf_counter()
        self._code = ""
        self._error: str | None = None
        bind_request_id(self.request_id)
        bind_deadline(_shorter(context.time_remaining(), policy.max_call_s))
        metrics.calls_running.labels(method).inc()
        policy.running.change(1)

    def authenticate(self) -> None:
        """Raise UnauthenticatedError unless the call carries the server's token, if the server has one."""
        if self._policy.token is not None:
            check_token(self.metadata, self._policy.token)

    @property
    def echo(self) -> Metadata:
        """The initial metadata of the answer.

        It is sent with the first message, not before: the client's channel retries a call that fails without having
        received headers.
        """
        self.echoed = True
        return ((REQUEST_ID_KEY, self.request_id),)

    def failed(self, error: BaseException) -> AbortStatus:
        """Log an error of the handler, and return the status to abort with."""
        shown = as_contract_error(error, self.method, self.request_id)
        if shown is not error and isinstance(shown, InternalError):
            log.error("unexpected_error", method=self.method, exc_info=error)
        status = _abort_status(shown, self.request_id)
        self._code = status.code.name
        self._error = shown.message
        return status

    def finished(self, code: str = "OK") -> None:
        """Count and log the call; `code` applies unless failed() set another."""
        seconds = time.perf_counter() - self._started
        code = self._code or code
        metrics.calls_running.labels(self.method).dec()
        self._policy.running.change(-1)
        metrics.calls_total.labels(self.method, code).inc()
        metrics.call_seconds.labels(self.method).observe(seconds)
        error = {} if self._error is None else {"error": self._error}
        log.info("call", method=self.method, code=code, seconds=round(seconds, 4), peer=self._peer, **error)
        bind_request_id("")
        bind_deadline(None)


def guard(method: str, handler: Handler, policy: CallPolicy, executor: Executor | None = None) -> Handler:
    """Return a handler that serves `handler` under the policy and the error table.

    Without an executor the handler is a coroutine function or an async generator. With one it is a plain function,
    which runs on the executor's threads, together with the parsing of its request.
    """
    behavior = behavior_of(handler)
    decode = decoder_of(handler)
    if executor is not None and (handler.request_streaming or handler.response_streaming):
        raise TypeError(f"{method} is a streaming method: it cannot run on an executor")

    async def unary(request: Any, context: Any) -> Any:
        async with _served(method, context, policy) as call:
            if executor is None:
                response = await behavior(decode(request), context)
            else:
                response = await _on_thread(executor, lambda: behavior(decode(request), context), policy.running)
            await context.send_initial_metadata(call.echo)
            return response

    async def stream(request: Any, context: Any) -> None:
        async with _served(method, context, policy) as call:
            # A method without an implementation raises here instead of returning a generator.
            pieces = behavior(decode(request), context)
            # Written, not yielded: a cancelled call then unwinds the handler at once, not when it is collected.
            async with aclosing(pieces):
                async for response in pieces:
                    if not call.echoed:
                        await context.send_initial_metadata(call.echo)
                    await context.write(response)

    return rebuilt(handler, stream if handler.response_streaming else unary)


def refusal(error: LoraRetrieverError) -> Handler:
    """Return a handler that refuses every call with `error`."""

    async def refuse(_request: Any, context: Any) -> Any:
        status = _abort_status(error, _request_id(context.invocation_metadata() or ()))
        await context.abort(status.code, status.details, status.trailing_metadata)

    return grpc.unary_unary_rpc_method_handler(refuse)


async def _on_thread(executor: Executor, work: Callable[[], Any], running: RunningCalls) -> Any:
    """Run `work` on a thread of the executor, with the request id and the deadline of the call.

    A call that ends while its work is still queued removes it from the queue. Work that has started is not interrupted:
    it counts as running until it ends, so that a graceful stop does not close what it uses.
    """
    future = executor.submit(copy_context().run, work)
    running.change(1)
    future.add_done_callback(lambda _: running.change(-1))  # Called on: a thread of the executor, or the event loop.
    return await asyncio.wrap_future(future)


@asynccontextmanager
async def _served(method: str, context: Any, policy: CallPolicy) -> AsyncIterator[ServedCall]:
    call = ServedCall(method, context, policy)
    try:
        call.authenticate()
        async with _time_limit(method, policy):
            yield call
    except asyncio.CancelledError as error:
        if context.cancelled() or _is_being_cancelled():
            call.finished("CANCELLED")
            raise
        # The handler's own work was cancelled, not the call: its caller still waits for a status.
        status = call.failed(error)
    except Exception as error:
        if context.cancelled():
            call.finished("CANCELLED")
            raise asyncio.CancelledError from error
        status = call.failed(_unimplemented(error, context.code(), method))
    else:
        call.finished()
        return
    call.finished()
    await context.abort(status.code, status.details, status.trailing_metadata)


@asynccontextmanager
async def _time_limit(method: str, policy: CallPolicy) -> AsyncIterator[None]:
    limit = asyncio.timeout(policy.max_call_s)
    try:
        async with limit:
            yield
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise DeadlineError(
            f"{method} took longer than this server allows ({policy.max_call_s:g} s); ask for less, or raise max_call_s"
        ) from error


def _shorter(first_s: float | None, second_s: float | None) -> float | None:
    return min((seconds for seconds in (first_s, second_s) if seconds is not None), default=None)


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _unimplemented(error: Exception, code: object, method: str) -> Exception:
    """Return the error, or UnimplementedError where generated code raised it for a method without implementation."""
    if isinstance(error, NotImplementedError) and code in (grpc.StatusCode.UNIMPLEMENTED, 12):
        return UnimplementedError(f"{method} is part of the contract, but this server does not offer it")
    return error


def _abort_status(error: LoraRetrieverError, request_id: str) -> AbortStatus:
    status = to_status(error, request_id)
    trailers = ((DETAILS_KEY, status.SerializeToString()), (REQUEST_ID_KEY, request_id))
    return AbortStatus(status_code(error), status.message, trailers)


def _request_id(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    for key, value in metadata:
        if key == REQUEST_ID_KEY and isinstance(value, str) and valid_request_id(value):
            return value
    return new_request_id()
