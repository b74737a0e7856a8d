"""The mapping between exceptions and gRPC statuses, used by every server and every client."""

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

#: Accepted by servers and channels. Bearer tokens and error details travel as metadata, of which gRPC accepts 8 KiB by
#: default.
MAX_METADATA_BYTES = 32 * 2**10

# A status is sent in HTTP/2 trailers, which clients in other languages limit to 8 KiB by default. They contain the
# message three times, once percent-encoded and twice in base64.
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
    """Return the status code of an error: that of its class, or of the nearest ancestor in the table."""
    return next(STATUS_OF[cls] for cls in type(error).__mro__ if cls in STATUS_OF)


def to_status(error: LoraRetrieverError, request_id: str) -> status_pb2.Status:
    """Return an error as a status with an ErrorInfo, a RequestInfo, and a BadRequest if an argument is invalid."""
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
    """Return what a caller may see of an exception that a handler raised.

    Errors of the contract are returned unchanged. A failed call to another service becomes the error it carried.
    Cancellation that the caller did not cause becomes CancelledError. Everything else becomes an InternalError without
    details.
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

    A status without details of this project (a failed connection, a passed deadline, an oversized message) becomes the
    closest class, with a message that names `target` and the remedy. The request id, if known, is added as a note.
    """
    code: grpc.StatusCode = error.code() or grpc.StatusCode.UNKNOWN
    text = error.details() or ""
    status = _status_of(error)
    info = error_details_pb2.ErrorInfo()
    request = error_details_pb2.RequestInfo()
    bad_request = error_details_pb2.BadRequest()
    if status is not None:
        for detail in status.details:
            for message in (info, request, bad_request):
                if detail.Is(message.DESCRIPTOR):
                    detail.Unpack(message)
    if info.domain == DOMAIN:
        rebuilt = _rebuild(code, text, info, bad_request)
    else:
        rebuilt = _without_details(code, text, target or "the server")
    if request.request_id:
        rebuilt.add_note(f"request id {request.request_id}")
    return rebuilt


def request_id_of(error: grpc.RpcError) -> str:
    """Return the request id that a failed call carried, or ""."""
    status = _status_of(error)
    request = error_details_pb2.RequestInfo()
    for detail in status.details if status is not None else ():
        if detail.Is(request.DESCRIPTOR):
            detail.Unpack(request)
    return str(request.request_id)


@contextmanager
def translated(target: str = "") -> Iterator[None]:
    """Convert a grpc.RpcError raised within to its LoraRetrieverError. Works for sync and aio calls."""
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
        rebuilt: LoraRetrieverError = (
            InvalidArgumentError("", text)
            if violation is None
            else InvalidArgumentError(violation.field, violation.description)
        )
    else:
        rebuilt = (_CLASS_OF_REASON.get(info.reason) or _CLASS_OF_CODE.get(code) or InternalError)(text)
    rebuilt.metadata = metadata
    if info.reason and info.reason != rebuilt.reason:
        # A server's own subclass, which this process does not know: the nearest class here, with the original reason.
        rebuilt.reason = info.reason  # type: ignore[misc]
    return rebuilt


def _without_details(code: grpc.StatusCode, text: str, target: str) -> LoraRetrieverError:
    details = f": {text}" if text else ""
    match code:
        case grpc.StatusCode.UNAVAILABLE:
            return UnreachableError(
                f"{target} cannot be reached; check that it runs and is ready, and that the address is right{details}",
                target=target,
            )
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineError(f"{target} did not answer before the deadline; allow more time, or try again{details}")
        case grpc.StatusCode.RESOURCE_EXHAUSTED if "larger than max" in text:
            return InvalidArgumentError(
                "",
                f"the message to or from {target} is over the size limit ({text}); send fewer or smaller images, "
                "or raise max_message_bytes on both sides",
            )
        case grpc.StatusCode.INVALID_ARGUMENT | grpc.StatusCode.OUT_OF_RANGE:
            return InvalidArgumentError("", text or f"{target} refused the request as invalid")
        case grpc.StatusCode.UNIMPLEMENTED:
            return UnimplementedError(f"{target} does not offer this method; is it the right service?{details}")
        case _:
            return _CLASS_OF_CODE.get(code, InternalError)(f"{target} answered {code.name}{details}")


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
