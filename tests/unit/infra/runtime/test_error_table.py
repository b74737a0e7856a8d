"""The error table with statuses that no server of this project sent."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from infra.contract.errors import (
    CheckpointError,
    ConflictError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    LoraRetrieverError,
    NotFoundError,
    OverloadedError,
    UnauthenticatedError,
)
from infra.runtime.error_table import (
    DETAILS_KEY,
    MAX_MESSAGE_BYTES,
    as_contract_error,
    from_rpc_error,
    request_id_of,
    status_code,
    to_status,
    translated,
)


class Failed(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, details: str | None = None, packed: bytes | None = None) -> None:
        self._code, self._details, self._packed = code, details, packed

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str | None:
        return self._details

    def trailing_metadata(self) -> Any:
        return None if self._packed is None else ((DETAILS_KEY, self._packed),)


class QuantizedError(CheckpointError):
    """An error that a service defined for itself."""

    reason = "CHECKPOINT_QUANTIZED"


def test_error_subclass_has_ancestors_status_and_own_reason() -> None:
    error = QuantizedError("no quantized checkpoints; give the original", adapter="x")
    assert status_code(error) is grpc.StatusCode.FAILED_PRECONDITION
    packed = to_status(error, "r").SerializeToString()
    received = from_rpc_error(Failed(grpc.StatusCode.FAILED_PRECONDITION, error.message, packed))
    assert type(received) is FailedPreconditionError
    assert (received.reason, received.message, received.metadata) == (error.reason, error.message, error.metadata)
    assert FailedPreconditionError.reason == "FAILED_PRECONDITION", "the class is untouched"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (grpc.StatusCode.NOT_FOUND, NotFoundError),
        (grpc.StatusCode.ABORTED, ConflictError),
        (grpc.StatusCode.PERMISSION_DENIED, UnauthenticatedError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, OverloadedError),
        (grpc.StatusCode.OUT_OF_RANGE, InvalidArgumentError),
        (grpc.StatusCode.DATA_LOSS, InternalError),
        (grpc.StatusCode.UNKNOWN, InternalError),
    ],
)
def test_foreign_status_becomes_nearest_class(code: grpc.StatusCode, expected: type[LoraRetrieverError]) -> None:
    with pytest.raises(expected, match="proxy says no") as caught, translated("the proxy"):
        raise Failed(code, "proxy says no")
    assert type(caught.value) is expected


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_status_without_details_has_message(code: grpc.StatusCode) -> None:
    assert "somewhere:1" in from_rpc_error(Failed(code), "somewhere:1").message


def test_foreign_or_malformed_details_are_ignored() -> None:
    foreign = status_pb2.Status(code=5, message="gone")
    foreign.details.add().Pack(error_details_pb2.ErrorInfo(reason="REVISION_CONFLICT", domain="googleapis.com"))
    for packed in (foreign.SerializeToString(), b"\xff\xff\xff", b""):
        error = Failed(grpc.StatusCode.NOT_FOUND, "gone", packed)
        assert type(from_rpc_error(error)) is NotFoundError
        assert request_id_of(error) == ""


def test_request_id_is_note_of_error() -> None:
    packed = to_status(NotFoundError("no adapter 'x'"), "ticket-42").SerializeToString()
    received = from_rpc_error(Failed(grpc.StatusCode.NOT_FOUND, "no adapter 'x'", packed))
    assert received.__notes__ == ["request id ticket-42"]


def test_argument_error_without_details_keeps_its_message() -> None:
    received = from_rpc_error(Failed(grpc.StatusCode.INVALID_ARGUMENT, "bad"))
    assert isinstance(received, InvalidArgumentError)
    assert (received.field, received.message) == ("", "bad")


def test_messages_are_truncated_between_characters() -> None:
    status = to_status(InvalidArgumentError("prompt", "ü" * 5000), "r")
    assert len(status.message.encode()) <= MAX_MESSAGE_BYTES
    assert status.message.endswith("ü ...")


def test_internal_error_hides_exception() -> None:
    shown = as_contract_error(KeyError("secret"), "/a.B/C", "ticket-42")
    assert type(shown) is InternalError
    assert shown.message == "/a.B/C failed on the server; its log has the reason under request id ticket-42"
    assert type(as_contract_error(grpc.RpcError("secret"), "/a.B/C", "t")) is InternalError
