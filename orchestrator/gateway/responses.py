"""The bodies of responses: OpenAI's objects, each with the adapters of its answer in the field `loraretriever`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field, SerializerFunctionWrapHandler, model_serializer

from infra.contract.generation import FinishReason, Generation
from infra.contract.retrieval import Match, Selection, SelectionReason
from orchestrator.answering.question import Answer
from orchestrator.gateway.steering import Plan


class MatchReport(BaseModel):
    """A retrieved adapter: its similarity in [-1, 1], and its weight."""

    id: str
    display_name: str
    kind: str
    revision: str
    similarity: float
    weight: float

    @classmethod
    def of(cls, match: Match) -> MatchReport:
        """Return the report of a match."""
        adapter = match.adapter
        return cls(
            id=adapter.adapter_id,
            display_name=adapter.display_name,
            kind=adapter.kind,
            revision=adapter.revision,
            similarity=match.similarity,
            weight=match.weight,
        )


class AppliedAdapter(BaseModel):
    """An adapter that an answer was decoded with, and its weight."""

    id: str
    weight: float
    revision: str


class SelectionReport(BaseModel):
    """The retrieved adapters, the most similar one first; `reason` says why there are none.

    `log_odds`: how much more likely the prompt is under the best match than under an adapter that is not registered.
    """

    method: str
    matches: list[MatchReport]
    reason: SelectionReason | None = None
    log_odds: float | None = None

    @classmethod
    def of_selection(cls, plan: Plan, selection: Selection) -> SelectionReport:
        """Return the report of a selection."""
        return cls(method=plan.label, matches=_matches(selection), reason=selection.reason, log_odds=selection.log_odds)


class AnswerReport(SelectionReport):
    """How an answer came about. Empty `adapters`: the base model answered alone. Times are in seconds."""

    adapters: list[AppliedAdapter]
    catalogue_revision: str
    stale: bool
    image_tokens: int
    retrieval_s: float
    queue_s: float
    prefill_s: float
    decode_s: float
    total_s: float

    @classmethod
    def of(cls, plan: Plan, answer: Answer) -> AnswerReport:
        """Return the report of an answer."""
        generation = answer.generation
        return cls(
            method=plan.label,
            matches=_matches(answer.selection),
            reason=answer.selection.reason,
            log_odds=answer.selection.log_odds,
            adapters=[
                AppliedAdapter(id=share.adapter_id, weight=share.weight, revision=share.revision)
                for share in generation.applied
            ],
            catalogue_revision=answer.catalogue_revision,
            stale=answer.stale,
            image_tokens=generation.usage.image_tokens,
            retrieval_s=answer.retrieval_s,
            queue_s=generation.timings.queue_s,
            prefill_s=generation.timings.prefill_s,
            decode_s=generation.timings.decode_s,
            total_s=answer.total_s,
        )


class UsageReport(BaseModel):
    """Tokens of the prompt, image tokens included, and of the answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, generation: Generation) -> UsageReport:
        """Return the usage of an answer."""
        prompt, completion = generation.usage.prompt_tokens, generation.usage.completion_tokens
        return cls(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


class AssistantMessage(BaseModel):
    """The answer as a message."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """The only choice of a chat completion."""

    index: int = 0
    message: AssistantMessage
    logprobs: None = None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    """The response of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageReport
    loraretriever: AnswerReport


class TextChoice(BaseModel):
    """The only choice of a completion."""

    index: int = 0
    text: str
    logprobs: None = None
    finish_reason: FinishReason | None


class Completion(BaseModel):
    """The response of /v1/completions, and a part of its stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: UsageReport | None = None
    loraretriever: AnswerReport | SelectionReport | None = None


class Delta(BaseModel):
    """What a part of a stream adds to the message."""

    role: Literal["assistant"] | None = None
    content: str | None = None

    @model_serializer(mode="wrap")
    def _without_nulls(self, serialise: SerializerFunctionWrapHandler) -> dict[str, str]:
        # OpenAI leaves out what a part does not add; some clients take a null role for a change of speaker.
        return {name: value for name, value in serialise(self).items() if value is not None}


class ChunkChoice(BaseModel):
    """The only choice of a part of a stream."""

    index: int = 0
    delta: Delta
    logprobs: None = None
    finish_reason: FinishReason | None = None


class ChatChunk(BaseModel):
    """A part of the stream of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: UsageReport | None = None
    loraretriever: AnswerReport | SelectionReport | None = Field(
        None, description="the retrieved adapters in the first part, everything in the last one with a choice"
    )


class ErrorDetail(BaseModel):
    """What went wrong. `param` is the path of the field that is wrong; `code` names the cause."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorResponse(BaseModel):
    """The body of every response that is not a success."""

    error: ErrorDetail


def _matches(selection: Selection) -> list[MatchReport]:
    return [MatchReport.of(match) for match in selection.matches]
