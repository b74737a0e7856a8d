"""Errors in OpenAI's shape: which HTTP status, type and code an exception of the contract has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from infra.contract.errors import (
    AlreadyExistsError,
    CancelledError,
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
)
from infra.runtime.error_table import as_contract_error
from infra.runtime.logs import get_logger, request_id

log = get_logger(__name__)

#: Seconds after which a refused client should try again. A queue moves within a second; a tier restarts within several.
_RETRY_AFTER_S: Mapping[HTTPStatus, int] = {HTTPStatus.TOO_MANY_REQUESTS: 1, HTTPStatus.SERVICE_UNAVAILABLE: 2}

_STATUS_OF: Mapping[type[LoraRetrieverError], HTTPStatus] = MappingProxyType(
    {
        InvalidArgumentError: HTTPStatus.BAD_REQUEST,
        FailedPreconditionError: HTTPStatus.BAD_REQUEST,
        NotFoundError: HTTPStatus.NOT_FOUND,
        AlreadyExistsError: HTTPStatus.CONFLICT,
        ConflictError: HTTPStatus.CONFLICT,
        OverloadedError: HTTPStatus.TOO_MANY_REQUESTS,
        UnimplementedError: HTTPStatus.NOT_IMPLEMENTED,
        UnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
        CancelledError: HTTPStatus.SERVICE_UNAVAILABLE,
        DeadlineError: HTTPStatus.GATEWAY_TIMEOUT,
        LoraRetrieverError: HTTPStatus.INTERNAL_SERVER_ERROR,
    }
)

_TYPE_OF: Mapping[HTTPStatus, str] = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}


#: pydantic's type of the error for a value that is not an object.
_NOT_AN_OBJECT = "model_attributes_type"


class UnknownModelError(NotFoundError):
    """`model` names neither a method nor an adapter of the catalogue."""

    reason = "MODEL_NOT_FOUND"


@dataclass(frozen=True)
class ErrorReply:
    """A refusal: its status, and the `error` object of OpenAI's API.

    `param` is the path of the field that is wrong, empty if none is; `code` names the cause for programs.
    """

    status: HTTPStatus
    message: str
    code: str
    param: str = ""

    @property
    def content(self) -> dict[str, Any]:
        """The body of the response, and the data of an error event in a stream."""
        by_class = "server_error" if self.status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": _TYPE_OF.get(self.status, by_class),
                "param": self.param or None,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        """Return the response, with the headers that clients act on."""
        headers: dict[str, str] = {}
        if self.status in _RETRY_AFTER_S:
            headers["retry-after"] = str(_RETRY_AFTER_S[self.status])
        if self.status is HTTPStatus.UNAUTHORIZED:
            headers["www-authenticate"] = "Bearer"
        if self.status is HTTPStatus.CONFLICT:
            headers["x-should-retry"] = "false"  # OpenAI's clients repeat a request that got 409.
        return JSONResponse(self.content, self.status, headers)


def reply_to(error: BaseException) -> ErrorReply:
    """Return the reply to an exception that a route raised. Unexpected ones are logged, and not described."""
    shown = as_contract_error(error, "the request", request_id())
    if shown is not error and isinstance(shown, InternalError):
        log.error("unexpected_error", exc_info=error)
    if isinstance(shown, UnauthenticatedError):
        # Callers of the gateway are authenticated before a route runs: this is the gateway's own token.
        log.error("service_token_refused", error=shown.message)
        shown = InternalError("a service refuses this server's token; its operator must set --service-token")
    status = next(_STATUS_OF[cls] for cls in type(shown).__mro__ if cls in _STATUS_OF)
    param = shown.field if isinstance(shown, InvalidArgumentError) else shown.metadata.get("param", "")
    return ErrorReply(status, shown.message, shown.reason.lower(), param)


def reply_to_invalid(error: RequestValidationError) -> ErrorReply:
    """Return the reply to a body or a query that does not fit its model: the first field that is wrong."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        message = f"the body is not JSON: {first.get('ctx', {}).get('error', first['msg'])}"
        return ErrorReply(HTTPStatus.BAD_REQUEST, message, "invalid_json")
    path = _path(first["loc"][1:])
    if not path and first["type"] in ("missing", _NOT_AN_OBJECT):
        message = "the body is not a JSON object; send one, with the header 'content-type: application/json'"
        return ErrorReply(HTTPStatus.BAD_REQUEST, message, "invalid_json")
    problem = _problem(first)
    return ErrorReply(
        HTTPStatus.BAD_REQUEST, f"{path}: {problem}" if path else problem, InvalidArgumentError.reason.lower(), path
    )


def _problem(error: Mapping[str, Any]) -> str:
    match error["type"]:
        case "extra_forbidden":
            return "this server has no such field; leave it out"
        case "missing":
            return "is missing"
        case "string_unicode":
            return "is not valid Unicode text: it contains half of a surrogate pair"
        case _ if error["type"] == _NOT_AN_OBJECT:
            return "must be a JSON object"
        case _:
            text = str(error["msg"]).removeprefix("Value error, ")
            return text[:1].lower() + text[1:]


def _path(location: Sequence[int | str]) -> str:
    path = ""
    for step in location:
        if step == "[key]":  # The key of an object, which the step before it names.
            continue
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    return path
