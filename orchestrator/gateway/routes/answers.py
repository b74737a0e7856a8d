"""POST /v1/chat/completions and /v1/completions."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from infra.contract.errors import NotFoundError
from orchestrator.answering.question import Answer, Question
from orchestrator.gateway.disconnect import EventStream, while_connected
from orchestrator.gateway.formats import ChatFormat, Format, TextFormat
from orchestrator.gateway.requests import AnswerRequest, ChatRequest, CompletionRequest, request_fields
from orchestrator.gateway.responses import ChatCompletion, Completion
from orchestrator.gateway.services import Services
from orchestrator.gateway.steering import Plan, unknown_model
from orchestrator.gateway.streaming import OpenStream, open_stream, sse

_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "the answer, or its stream"}
}


def answer_routes(services: Services) -> APIRouter:
    """Return the routes."""
    router = APIRouter(tags=["answers"])

    @router.post("/v1/chat/completions", response_model=ChatCompletion, responses=_STREAM)
    async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        plan = body.plan()
        await while_connected(request, services.images.inline(body.messages))
        return await _answer(services, body, plan, ChatFormat(body.model, plan), request)

    @router.post("/v1/completions", response_model=Completion, responses=_STREAM)
    async def create_completion(body: CompletionRequest, request: Request) -> Response:
        """Answer a text."""
        plan = body.plan()
        return await _answer(services, body, plan, TextFormat(body.model, plan), request)

    return router


async def _answer(services: Services, body: AnswerRequest, plan: Plan, form: Format, request: Request) -> Response:
    question = body.question(plan)
    with request_fields(chat=isinstance(body, ChatRequest)):
        if body.stream:
            stream = await while_connected(request, _opened(services, question))
            return EventStream(sse(stream, form, includes_usage=body.includes_usage))
        answer = await while_connected(request, _answered(services, question))
    return Response(form.whole(answer).model_dump_json(), media_type="application/json")


async def _answered(services: Services, question: Question) -> Answer:
    await _check_adapter(services, question)
    return await services.pipeline.answer(question, services.answer_timeout_s)


async def _opened(services: Services, question: Question) -> OpenStream:
    await _check_adapter(services, question)
    return await open_stream(services.pipeline.stream(question, services.answer_timeout_s))


async def _check_adapter(services: Services, question: Question) -> None:
    """Raise UnknownModelError if `model` names an adapter that the catalogue does not have."""
    if not question.oracle:
        return
    try:
        await services.retrieval.get_adapter(question.oracle)
    except NotFoundError as error:
        raise unknown_model(question.oracle) from error
