"""POST /v1/adapters/match: which adapters fit a prompt, without an answer."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from infra.contract.errors import InvalidArgumentError
from infra.contract.prompt import Prompt
from infra.contract.retrieval import SelectionReason
from orchestrator.answering.question import Question
from orchestrator.gateway.content import MAX_MESSAGES, ChatMessage, prompt_of
from orchestrator.gateway.disconnect import while_connected
from orchestrator.gateway.requests import renamed_prompt, request_fields
from orchestrator.gateway.responses import MatchReport
from orchestrator.gateway.services import Services
from orchestrator.gateway.steering import EXTENSION, RetrievalFields


class MatchRequest(RetrievalFields):
    """A prompt, as messages or as a text, and which adapters to retrieve."""

    messages: list[ChatMessage] | None = Field(None, min_length=1, max_length=MAX_MESSAGES)
    prompt: str | None = None

    def question(self) -> Question:
        """Return the question. Raises InvalidArgumentError."""
        match self.messages, self.prompt:
            case list(messages), None:
                prompt = prompt_of(messages)
            case None, str(text):
                with renamed_prompt("prompt"):
                    prompt = Prompt.of(text)
            case _:
                raise InvalidArgumentError("messages", "send either messages or prompt")
        return Question(prompt, retrieval=self.options())


class MatchList(BaseModel):
    """The adapters that fit, the most similar one first. `reason` says why there are none."""

    object: Literal["list"] = "list"
    data: list[MatchReport]
    reason: SelectionReason | None
    log_odds: float | None
    catalogue_revision: str
    stale: bool


def matching_routes(services: Services) -> APIRouter:
    """Return the routes."""
    router = APIRouter(tags=["adapters"])

    @router.post("/v1/adapters/match")
    async def match_adapters(body: MatchRequest, request: Request) -> MatchList:
        """Retrieve the adapters that `model: auto` would answer with."""
        await while_connected(request, services.images.inline(body.messages or ()))
        question = body.question()
        try:
            with request_fields(chat=body.messages is not None):
                result = await while_connected(request, services.pipeline.match(question, services.answer_timeout_s))
        except InvalidArgumentError as error:
            raise error.renamed(error.field.removeprefix(f"{EXTENSION}.")) from error
        return MatchList(
            data=[MatchReport.of(match) for match in result.selection.matches],
            reason=result.selection.reason,
            log_odds=result.selection.log_odds,
            catalogue_revision=result.catalogue_revision,
            stale=result.stale,
        )

    return router
