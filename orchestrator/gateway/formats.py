"""The two formats of answers: chat completions and text completions, whole and as parts of a stream."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from typing import Protocol

from pydantic import BaseModel

from infra.contract.generation import FinishReason
from infra.contract.retrieval import Selection
from orchestrator.answering.question import Answer
from orchestrator.gateway.responses import (
    AnswerReport,
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChunkChoice,
    Completion,
    Delta,
    SelectionReport,
    TextChoice,
    UsageReport,
)
from orchestrator.gateway.steering import Plan


@dataclass(frozen=True)
class Head:
    """What all parts of one response share: its id, when it was created (Unix time), its model and its plan."""

    id: str
    created: int
    model: str
    plan: Plan

    @classmethod
    def new(cls, prefix: str, model: str, plan: Plan) -> Head:
        """Return the head of a new response."""
        return cls(f"{prefix}-{uuid.uuid4().hex}", int(time.time()), model, plan)


class Format(Protocol):
    """One endpoint's objects."""

    def whole(self, answer: Answer) -> BaseModel:
        """Return the response of a request without streaming."""

    def begin(self, selection: Selection) -> BaseModel:
        """Return the first part of a stream: the retrieved adapters."""

    def piece(self, text: str) -> BaseModel:
        """Return a part with a piece of the text."""

    def end(self, answer: Answer) -> BaseModel:
        """Return the last part with a choice: the reason of the end, and the adapters that were applied."""

    def usage(self, answer: Answer) -> BaseModel:
        """Return the part after that, without a choice, for requests with stream_options.include_usage."""


class ChatFormat:
    """The objects of /v1/chat/completions."""

    def __init__(self, model: str, plan: Plan) -> None:
        self._head = Head.new("chatcmpl", model, plan)

    def whole(self, answer: Answer) -> ChatCompletion:
        """Return the completion."""
        generation = answer.generation
        choice = ChatChoice(message=AssistantMessage(content=generation.text), finish_reason=generation.finish_reason)
        return ChatCompletion(
            id=self._head.id,
            created=self._head.created,
            model=self._head.model,
            choices=[choice],
            usage=UsageReport.of(generation),
            loraretriever=AnswerReport.of(self._head.plan, answer),
        )

    def begin(self, selection: Selection) -> ChatChunk:
        """Return the part with the role."""
        report = SelectionReport.of_selection(self._head.plan, selection)
        return self._chunk([ChunkChoice(delta=Delta(role="assistant", content=""))], report=report)

    def piece(self, text: str) -> ChatChunk:
        """Return a part with text."""
        return self._chunk([ChunkChoice(delta=Delta(content=text))])

    def end(self, answer: Answer) -> ChatChunk:
        """Return the part with the reason of the end."""
        choice = ChunkChoice(delta=Delta(), finish_reason=answer.generation.finish_reason)
        return self._chunk([choice], report=AnswerReport.of(self._head.plan, answer))

    def usage(self, answer: Answer) -> ChatChunk:
        """Return the part with the usage."""
        return self._chunk([], usage=UsageReport.of(answer.generation))

    def _chunk(
        self, choices: list[ChunkChoice], usage: UsageReport | None = None, report: SelectionReport | None = None
    ) -> ChatChunk:
        head = self._head
        return ChatChunk(
            id=head.id, created=head.created, model=head.model, choices=choices, usage=usage, loraretriever=report
        )


class TextFormat:
    """The objects of /v1/completions."""

    def __init__(self, model: str, plan: Plan) -> None:
        self._head = Head.new("cmpl", model, plan)

    def whole(self, answer: Answer) -> Completion:
        """Return the completion."""
        generation = answer.generation
        report = AnswerReport.of(self._head.plan, answer)
        return self._part(generation.text, generation.finish_reason, UsageReport.of(generation), report)

    def begin(self, selection: Selection) -> Completion:
        """Return the part without text."""
        return self._part("", report=SelectionReport.of_selection(self._head.plan, selection))

    def piece(self, text: str) -> Completion:
        """Return a part with text."""
        return self._part(text)

    def end(self, answer: Answer) -> Completion:
        """Return the part with the reason of the end."""
        return self._part("", answer.generation.finish_reason, report=AnswerReport.of(self._head.plan, answer))

    def usage(self, answer: Answer) -> Completion:
        """Return the part with the usage."""
        return self._part(None, usage=UsageReport.of(answer.generation))

    def _part(
        self,
        text: str | None,
        finish_reason: FinishReason | None = None,
        usage: UsageReport | None = None,
        report: SelectionReport | None = None,
    ) -> Completion:
        head = self._head
        choices = [] if text is None else [TextChoice(text=text, finish_reason=finish_reason)]
        return Completion(
            id=head.id, created=head.created, model=head.model, choices=choices, usage=usage, loraretriever=report
        )
