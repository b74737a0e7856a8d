"""AnswerService and EvaluationService over gRPC: decode, call, encode."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from loraretriever.v1 import orchestrator_service_pb2 as pb
from loraretriever.v1 import orchestrator_service_pb2_grpc as pb_grpc

from infra.contract.errors import field_path
from infra.contract.retrieval import Selection
from infra.runtime.server import GrpcServer
from infra.runtime.wire import selection_to_proto
from orchestrator.answering.pipeline import Pipeline
from orchestrator.answering.question import Answer
from orchestrator.clients.wire.answers import answer_to_proto, question_from_proto
from orchestrator.clients.wire.evaluations import evaluation_to_proto, spec_from_proto
from orchestrator.jobs.service import EvaluationJobs

ANSWER_SERVICE = "loraretriever.v1.AnswerService"
EVALUATION_SERVICE = "loraretriever.v1.EvaluationService"


class AnswerServicer(pb_grpc.AnswerServiceServicer):
    """Answers with a pipeline, within the caller's deadline or `timeout_s`, whichever is shorter."""

    def __init__(self, pipeline: Pipeline, timeout_s: float) -> None:
        self._pipeline = pipeline
        self._timeout_s = timeout_s

    async def Answer(self, request: pb.AnswerRequest, context: Any) -> pb.AnswerResponse:  # noqa: N802
        """Answer one prompt."""
        return answer_to_proto(await self._pipeline.answer(question_from_proto(request), self._time_left(context)))

    async def StreamAnswer(  # noqa: N802
        self, request: pb.StreamAnswerRequest, context: Any
    ) -> AsyncIterator[pb.StreamAnswerResponse]:
        """Answer one prompt and stream the text."""
        async for event in self._pipeline.stream(question_from_proto(request), self._time_left(context)):
            yield _event_to_proto(event)

    def _time_left(self, context: Any) -> float:
        left = context.time_remaining()
        return self._timeout_s if left is None else min(left, self._timeout_s)


class EvaluationServicer(pb_grpc.EvaluationServiceServicer):
    """Serves evaluation jobs."""

    def __init__(self, jobs: EvaluationJobs) -> None:
        self._jobs = jobs

    async def CreateEvaluation(  # noqa: N802
        self, request: pb.CreateEvaluationRequest, context: Any
    ) -> pb.CreateEvaluationResponse:
        """Create a job."""
        with field_path("spec"):
            job = await self._jobs.create(spec_from_proto(request.spec), request.request_id)
        return pb.CreateEvaluationResponse(evaluation=evaluation_to_proto(job))

    async def GetEvaluation(  # noqa: N802
        self, request: pb.GetEvaluationRequest, context: Any
    ) -> pb.GetEvaluationResponse:
        """Return one job."""
        job = await self._jobs.get(request.evaluation_id)
        return pb.GetEvaluationResponse(evaluation=evaluation_to_proto(job))

    async def ListEvaluations(  # noqa: N802
        self, request: pb.ListEvaluationsRequest, context: Any
    ) -> pb.ListEvaluationsResponse:
        """Return a page of jobs."""
        page = await self._jobs.page(request.page_size, request.page_token)
        return pb.ListEvaluationsResponse(
            evaluations=[evaluation_to_proto(job) for job in page.evaluations], next_page_token=page.next_page_token
        )

    async def WatchEvaluation(  # noqa: N802
        self, request: pb.WatchEvaluationRequest, context: Any
    ) -> AsyncIterator[pb.WatchEvaluationResponse]:
        """Stream the changes of one job."""
        async for job in self._jobs.watch(request.evaluation_id):
            yield pb.WatchEvaluationResponse(evaluation=evaluation_to_proto(job))

    async def CancelEvaluation(  # noqa: N802
        self, request: pb.CancelEvaluationRequest, context: Any
    ) -> pb.CancelEvaluationResponse:
        """Cancel a job."""
        job = await self._jobs.cancel(request.evaluation_id)
        return pb.CancelEvaluationResponse(evaluation=evaluation_to_proto(job))

    async def GetReport(self, request: pb.GetReportRequest, context: Any) -> pb.GetReportResponse:  # noqa: N802
        """Return a job's report."""
        report = await self._jobs.report(request.evaluation_id)
        return pb.GetReportResponse(
            summary_json=report.summary_json, summary_markdown=report.summary_markdown, output_uri=report.output_uri
        )

    async def RetryEvaluation(  # noqa: N802
        self, request: pb.RetryEvaluationRequest, context: Any
    ) -> pb.RetryEvaluationResponse:
        """Write the report of a failed job again."""
        job = await self._jobs.retry(request.evaluation_id)
        return pb.RetryEvaluationResponse(evaluation=evaluation_to_proto(job))

    async def DeleteEvaluation(  # noqa: N802
        self, request: pb.DeleteEvaluationRequest, context: Any
    ) -> pb.DeleteEvaluationResponse:
        """Delete a job."""
        await self._jobs.delete(request.evaluation_id)
        return pb.DeleteEvaluationResponse()


def add_services(server: GrpcServer, pipeline: Pipeline, jobs: EvaluationJobs, answer_timeout_s: float) -> None:
    """Add both services to a server."""
    answer_servicer = AnswerServicer(pipeline, answer_timeout_s)
    server.add(answer_servicer, pb_grpc.add_AnswerServiceServicer_to_server, ANSWER_SERVICE)
    evaluation_servicer = EvaluationServicer(jobs)
    server.add(evaluation_servicer, pb_grpc.add_EvaluationServiceServicer_to_server, EVALUATION_SERVICE)


def _event_to_proto(event: Selection | str | Answer) -> pb.StreamAnswerResponse:
    match event:
        case Selection():
            return pb.StreamAnswerResponse(selection=selection_to_proto(event))
        case Answer():
            return pb.StreamAnswerResponse(final=answer_to_proto(event))
        case _:
            return pb.StreamAnswerResponse(delta=event)
