"""AnswerClient: the whole pipeline in one call."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from loraretriever.v1 import orchestrator_service_pb2 as pb
from loraretriever.v1 import orchestrator_service_pb2_grpc as pb_grpc

from infra.contract.retrieval import Selection
from infra.runtime.deadline import LONG_TIMEOUT_S
from infra.runtime.wire import selection_from_proto
from orchestrator.answering.question import Answer, Question
from orchestrator.clients.base import ServiceClient
from orchestrator.clients.wire.answers import answer_from_proto, question_to_proto


class AnswerClient(ServiceClient):
    """Client of AnswerService."""

    stub_class = pb_grpc.AnswerServiceStub

    async def answer(self, question: Question, timeout_s: float | None = None) -> Answer:
        """Return the answer to a question."""
        start = time.monotonic()
        request = pb.AnswerRequest(**question_to_proto(question))
        response = await self.call("Answer", request, timeout_s, LONG_TIMEOUT_S)
        return answer_from_proto(response, time.monotonic() - start)

    async def stream(
        self, question: Question, timeout_s: float | None = None
    ) -> AsyncIterator[Selection | str | Answer]:
        """Yield the selection, then the answer's text piece by piece, then the complete Answer."""
        start = time.monotonic()
        request = pb.StreamAnswerRequest(**question_to_proto(question))
        async for message in self.stream_of("StreamAnswer", request, timeout_s):
            match message.WhichOneof("event"):
                case "selection":
                    yield selection_from_proto(message.selection)
                case "final":
                    yield answer_from_proto(message.final, time.monotonic() - start)
                case _:
                    yield message.delta
