"""What happens around every call: request id, token, deadline, error table, metrics and access log.

The same for unary and streaming methods, on sync and aio servers. A request is parsed only after its caller is known.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
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
    """How many calls a server has under way."""

    def __init__(self) -> None:
        self._count = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._count

    def change(self, by: int) -> None:
        """Count one more (1) or one less (-1)."""
        with self._lock:
            self._count += by


@dataclass(frozen=True)
class CallPolicy:
    """What a server demands of each call: a bearer token (None: none), and an end after so many seconds.

    A sync handler cannot be interrupted: there the limit holds for the calls it makes, and for deadline.remaining_s().
    """

    token: str | None = field(default=None, repr=False)
    max_call_s: float | None = None
    running: RunningCalls = field(default_factory=RunningCalls)


@dataclass(frozen=True)
class AbortStatus(grpc.Status):
    """A status that ends a call, with its trailers."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: Metadata


class ServedCall:
    """One call under way: its request id, and its traces in logs and metrics."""

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

    def authorise(self) -> None:
        """Raise UnauthenticatedError unless the call carries the server's token, where it has one."""
        if self._policy.token is not None:
            check_token(self.metadata, self._policy.token)

    @property
    def echo(self) -> Metadata:
        """The initial metadata of the answer. Sent with the first message only: a call that fails before it can be
        retried by the client's channel, which headers would forbid.
        """
        self.echoed = True
        return ((REQUEST_ID_KEY, self.request_id),)

    def failed(self, error: BaseException) -> AbortStatus:
        """Log what a handler raised, and return the status to abort with."""
        shown = as_contract_error(error, self.method, self.request_id)
        if shown is not error and isinstance(shown, InternalError):
            log.error("unforeseen error", method=self.method, exc_info=error)
        status = _abort_status(shown, self.request_id)
        self._code = status.code.name
        self._error = shown.message
        return status

    def finished(self, code: str = "OK") -> None:
        """Count and log the call; `code` holds unless it failed() with another."""
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


def guard_sync(method: str, handler: Handler, policy: CallPolicy) -> Handler:
    """Return a sync handler that serves `handler` under the policy and the error table."""
    behavior = behavior_of(handler)
    decode = decoder_of(handler)

    def unary(request: Any, context: grpc.ServicerContext) -> Any:
        with _served(method, context, policy) as call:
            response = behavior(decode(request), context)
            context.send_initial_metadata(call.echo)
            return response

    def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        with _served(method, context, policy) as call:
            for response in behavior(decode(request), context):
                if not call.echoed:
                    context.send_initial_metadata(call.echo)
                yield response

    return rebuilt(handler, stream if handler.response_streaming else unary)


def guard_aio(method: str, handler: Handler, policy: CallPolicy) -> Handler:
    """Return an aio handler that serves `handler`, a coroutine or an async generator, likewise."""
    behavior = behavior_of(handler)
    decode = decoder_of(handler)

    async def unary(request: Any, context: Any) -> Any:
        async with _served_aio(method, context, policy) as call:
            response = await behavior(decode(request), context)
            await context.send_initial_metadata(call.echo)
            return response

    async def stream(request: Any, context: Any) -> None:
        async with _served_aio(method, context, policy) as call:
            # A method that nobody wrote raises here; it is no generator.
            pieces = behavior(decode(request), context)
            # Written, not yielded: a cancelled call then unwinds the handler at once, not when it is collected.
            async with aclosing(pieces):
                async for response in pieces:
                    if not call.echoed:
                        await context.send_initial_metadata(call.echo)
                    await context.write(response)

    return rebuilt(handler, stream if handler.response_streaming else unary)


def refusal(error: LoraRetrieverError, aio: bool) -> Handler:
    """Return a handler that refuses every call with `error`."""

    def refuse(_request: Any, context: grpc.ServicerContext) -> Any:
        context.abort_with_status(_abort_status(error, _request_id(context.invocation_metadata() or ())))

    async def refuse_aio(_request: Any, context: Any) -> Any:
        status = _abort_status(error, _request_id(context.invocation_metadata() or ()))
        await context.abort(status.code, status.details, status.trailing_metadata)

    return grpc.unary_unary_rpc_method_handler(refuse_aio if aio else refuse)


@contextmanager
def _served(method: str, context: Any, policy: CallPolicy) -> Iterator[ServedCall]:
    call = ServedCall(method, context, policy)
    try:
        call.authorise()
        yield call
    except Exception as error:
        if context.is_active():
            status = call.failed(_unforeseen(error, context.code(), method))
            call.finished()
        else:
            status = AbortStatus(grpc.StatusCode.CANCELLED, "the caller is gone", ())
            call.finished("CANCELLED")
        context.abort_with_status(status)
    except BaseException:
        # GeneratorExit: the caller left in the middle of a stream.
        call.finished("CANCELLED")
        raise
    else:
        call.finished()


@asynccontextmanager
async def _served_aio(method: str, context: Any, policy: CallPolicy) -> AsyncIterator[ServedCall]:
    call = ServedCall(method, context, policy)
    try:
        call.authorise()
        async with _time_limit(method, policy):
            yield call
    except asyncio.CancelledError as error:
        if context.cancelled() or _is_being_cancelled():
            call.finished("CANCELLED")
            raise
        status = call.failed(error)
    except Exception as error:
        if context.cancelled():
            call.finished("CANCELLED")
            raise asyncio.CancelledError from error
        status = call.failed(_unforeseen(error, context.code(), method))
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


def _unforeseen(error: Exception, code: object, method: str) -> Exception:
    """Return the error, or what it means where generated code raised it for a method that nobody wrote."""
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
