"""One table between exceptions and gRPC statuses, used by every server and every client."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from infra.contract.errors import (
    AlreadyExistsError,
    BaseModelMismatchError,
    CancelledError,
    CapacityError,
    CheckpointError,
    ConfigurationError,
    ConflictError,
    DeadlineError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    LoraRetrieverError,
    NotFoundError,
    OverloadedError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
    UnreachableError,
)

DOMAIN = "loraretriever"
DETAILS_KEY = "grpc-status-details-bin"
REQUEST_ID_KEY = "x-request-id"

# A status travels in HTTP/2 trailers, of which other languages' clients accept 8 KiB by default. The message is in
# them three times, once percent-encoded and twice in base64.
MAX_MESSAGE_BYTES = 1500
MAX_METADATA_VALUE_BYTES = 200
MAX_METADATA_ENTRIES = 8

STATUS_OF: Mapping[type[LoraRetrieverError], grpc.StatusCode] = MappingProxyType(
    {
        LoraRetrieverError: grpc.StatusCode.INTERNAL,
        InternalError: grpc.StatusCode.INTERNAL,
        InvalidArgumentError: grpc.StatusCode.INVALID_ARGUMENT,
        NotFoundError: grpc.StatusCode.NOT_FOUND,
        AlreadyExistsError: grpc.StatusCode.ALREADY_EXISTS,
        ConflictError: grpc.StatusCode.ABORTED,
        FailedPreconditionError: grpc.StatusCode.FAILED_PRECONDITION,
        BaseModelMismatchError: grpc.StatusCode.FAILED_PRECONDITION,
        CheckpointError: grpc.StatusCode.FAILED_PRECONDITION,
        CapacityError: grpc.StatusCode.FAILED_PRECONDITION,
        ConfigurationError: grpc.StatusCode.FAILED_PRECONDITION,
        OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
        UnavailableError: grpc.StatusCode.UNAVAILABLE,
        UnreachableError: grpc.StatusCode.UNAVAILABLE,
        DeadlineError: grpc.StatusCode.DEADLINE_EXCEEDED,
        CancelledError: grpc.StatusCode.CANCELLED,
        UnimplementedError: grpc.StatusCode.UNIMPLEMENTED,
        UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    }
)

_CLASS_OF_REASON = {cls.reason: cls for cls in STATUS_OF if cls is not LoraRetrieverError}

_CLASS_OF_CODE: Mapping[grpc.StatusCode, type[LoraRetrieverError]] = {
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
    grpc.StatusCode.ABORTED: ConflictError,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPreconditionError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: OverloadedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.CANCELLED: CancelledError,
    grpc.StatusCode.UNIMPLEMENTED: UnimplementedError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: UnauthenticatedError,
}


def status_code(error: LoraRetrieverError) -> grpc.StatusCode:
    """Return the status of an error: its class's, or that of its nearest ancestor in the table."""
    return next(STATUS_OF[cls] for cls in type(error).__mro__ if cls in STATUS_OF)


def to_status(error: LoraRetrieverError, request_id: str) -> status_pb2.Status:
    """Return the status of an error: an ErrorInfo always, a RequestInfo, and for invalid arguments a BadRequest."""
    message = _cut(error.message, MAX_MESSAGE_BYTES)
    status = status_pb2.Status(code=status_code(error).value[0], message=message)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    for key, value in list(error.metadata.items())[:MAX_METADATA_ENTRIES]:
        info.metadata[key] = _cut(str(value), MAX_METADATA_VALUE_BYTES)
    status.details.add().Pack(info)
    if request_id:
        status.details.add().Pack(error_details_pb2.RequestInfo(request_id=request_id))
    if isinstance(error, InvalidArgumentError):
        description = _cut(error.description, MAX_MESSAGE_BYTES - min(len(error.field), MAX_METADATA_VALUE_BYTES))
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=description)
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    return status


def as_contract_error(error: BaseException, method: str, request_id: str) -> LoraRetrieverError:
    """Return what a caller may see of anything that a handler raised.

    Errors of the contract pass; a failed call to another service becomes the error it carried; what was cancelled
    without the caller's doing becomes CancelledError; everything else is an InternalError that says nothing of it.
    """
    if isinstance(error, LoraRetrieverError):
        return error
    if isinstance(error, grpc.RpcError) and hasattr(error, "code"):
        return from_rpc_error(error)
    if isinstance(error, asyncio.CancelledError | concurrent.futures.CancelledError):
        return CancelledError(f"{method} was cancelled on the server before it was done; send it again")
    return InternalError(f"{method} failed on the server; its log has the reason under request id {request_id}")


def from_rpc_error(error: grpc.RpcError, target: str = "") -> LoraRetrieverError:
    """Return the exception that the server raised: its class, message, field path and metadata.

    A status that did not come from a server of ours (a connection that failed, a deadline that passed, a message over
    the limit) becomes the nearest class, with a message that names `target` and the remedy. The request id, where
    known, is added as a note.
    """
    code: grpc.StatusCode = error.code() or grpc.StatusCode.UNKNOWN
    text = error.details() or ""
    status = _status_of(error)
    info = error_details_pb2.ErrorInfo()
    request = error_details_pb2.RequestInfo()
    bad_request = error_details_pb2.BadRequest()
    if status is not None:
        for detail in status.details:
            for known in (info, request, bad_request):
                if detail.Is(known.DESCRIPTOR):
                    detail.Unpack(known)
    if info.domain == DOMAIN:
        made = _rebuild(code, text, info, bad_request)
    else:
        made = _without_details(code, text, target or "the server")
    if request.request_id:
        made.add_note(f"request id {request.request_id}")
    return made


def request_id_of(error: grpc.RpcError) -> str:
    """Return the request id that a failed call carried, or ""."""
    status = _status_of(error)
    found = error_details_pb2.RequestInfo()
    for detail in status.details if status is not None else ():
        if detail.Is(found.DESCRIPTOR):
            detail.Unpack(found)
    return str(found.request_id)


@contextmanager
def translated(target: str = "") -> Iterator[None]:
    """Turn a grpc.RpcError raised within into the LoraRetrieverError it stands for. For sync and aio calls alike."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error, target) from error


def _rebuild(
    code: grpc.StatusCode,
    text: str,
    info: error_details_pb2.ErrorInfo,
    bad_request: error_details_pb2.BadRequest,
) -> LoraRetrieverError:
    metadata = dict(info.metadata)
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        violation = next(iter(bad_request.field_violations), None)
        made: LoraRetrieverError = (
            InvalidArgumentError("", text)
            if violation is None
            else InvalidArgumentError(violation.field, violation.description)
        )
    else:
        made = (_CLASS_OF_REASON.get(info.reason) or _CLASS_OF_CODE.get(code) or InternalError)(text)
    made.metadata = metadata
    if info.reason and info.reason != made.reason:
        made.reason = info.reason  # type: ignore[misc]
    return made


def _without_details(code: grpc.StatusCode, text: str, target: str) -> LoraRetrieverError:
    said = f": {text}" if text else ""
    match code:
        case grpc.StatusCode.UNAVAILABLE:
            return UnreachableError(
                f"{target} cannot be reached; see that it runs, that it is ready, and that the address is right{said}",
                target=target,
            )
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineError(f"{target} did not answer before the deadline; allow more time, or try again{said}")
        case grpc.StatusCode.RESOURCE_EXHAUSTED if "larger than max" in text:
            return InvalidArgumentError(
                "",
                f"the message to or from {target} is over the size limit ({text}); send fewer or smaller images, "
                "or raise max_message_bytes on both sides",
            )
        case grpc.StatusCode.INVALID_ARGUMENT | grpc.StatusCode.OUT_OF_RANGE:
            return InvalidArgumentError("", text or f"{target} refused the request as invalid")
        case grpc.StatusCode.UNIMPLEMENTED:
            return UnimplementedError(f"{target} does not offer this method; is it the right service?{said}")
        case _:
            made = _CLASS_OF_CODE.get(code, InternalError)
            return made(f"{target} answered {code.name}{said}")


def _status_of(error: grpc.RpcError) -> status_pb2.Status | None:
    trailers: Iterable[tuple[str, str | bytes]] = error.trailing_metadata() or ()  # type: ignore[assignment]
    packed = next((value for key, value in trailers if key == DETAILS_KEY), None)
    if not isinstance(packed, bytes):
        return None
    try:
        return status_pb2.Status.FromString(packed)
    except DecodeError:
        return None


def _cut(text: str, limit: int) -> str:
    encoded = text.encode("utf-8", errors="replace")
    if len(encoded) <= limit:
        return encoded.decode()
    return encoded[: limit - 4].decode("utf-8", errors="ignore") + " ..."
