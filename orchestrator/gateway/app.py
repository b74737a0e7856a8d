"""The gateway's application: routes, errors in OpenAI's shape, and the guard around them."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from infra.contract.errors import LoraRetrieverError
from orchestrator.gateway.errors import ErrorReply, reply_to, reply_to_invalid
from orchestrator.gateway.guard import HEALTH_PATH, Guard, GuardPolicy
from orchestrator.gateway.responses import ErrorResponse
from orchestrator.gateway.routes.adapters import adapter_routes
from orchestrator.gateway.routes.answers import answer_routes
from orchestrator.gateway.routes.embeddings import embedding_routes
from orchestrator.gateway.routes.matching import matching_routes
from orchestrator.gateway.routes.models import model_routes
from orchestrator.gateway.services import Services

#: The status of a request whose client left, for the log and the metrics; nginx has it too.
_CLIENT_CLOSED_REQUEST = 499

_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorResponse, "description": "the request is refused"},
    "5XX": {"model": ErrorResponse, "description": "the answer failed"},
}


def gateway(services: Services, policy: GuardPolicy) -> Guard:
    """Return the ASGI application."""
    return Guard(routed(services), policy)


def routed(services: Services) -> FastAPI:
    """Return the application without its guard."""
    # FastAPI's pages at /docs load scripts from another host.
    app = FastAPI(title="loraretriever", version="v1", docs_url=None, redoc_url=None, responses=_ERRORS)
    for routes in (answer_routes, model_routes, embedding_routes, matching_routes, adapter_routes):
        app.include_router(routes(services))

    @app.get(HEALTH_PATH, tags=["health"])
    async def health() -> dict[str, str]:
        """Say that the gateway serves; it needs no token."""
        return {"status": "ok"}

    _add_error_handlers(app)
    return app


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(LoraRetrieverError)
    async def on_contract_error(_request: Request, error: LoraRetrieverError) -> JSONResponse:
        return reply_to(error).response()

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        return reply_to_invalid(error).response()

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> JSONResponse:
        status = HTTPStatus(error.status_code)
        if status is HTTPStatus.BAD_REQUEST:  # FastAPI's own: a body that its parser gave up on.
            return ErrorReply(status, "the body is not JSON that can be read", "invalid_json").response()
        what = f"{request.method} {request.url.path[:80]}"
        message = f"{what}: {str(error.detail)[:200]}; GET /openapi.json lists what this server offers"
        return ErrorReply(status, message, status.name.lower()).response()

    @app.exception_handler(ClientDisconnect)
    async def on_disconnect(_request: Request, _error: ClientDisconnect) -> Response:
        return Response(status_code=_CLIENT_CLOSED_REQUEST)

    @app.exception_handler(Exception)
    async def on_bug(_request: Request, error: Exception) -> JSONResponse:
        return reply_to(error).response()
