"""EvaluationClient: evaluation jobs."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator

from loraretriever.v1 import orchestrator_service_pb2 as pb
from loraretriever.v1 import orchestrator_service_pb2_grpc as pb_grpc

from infra.contract.errors import UnavailableError
from infra.runtime.deadline import LONG_TIMEOUT_S
from orchestrator.clients.base import ServiceClient
from orchestrator.clients.wire.evaluations import evaluation_from_proto, spec_to_proto
from orchestrator.evaluation.job import Evaluation, EvaluationPage, Report
from orchestrator.evaluation.spec import EvaluationSpec

#: Deadline of one watch stream, longer than any job: every call has a deadline.
_WATCH_TIMEOUT_S = 7 * 86_400.0
#: How long `watch` reconnects: outlasts a rolling restart of the orchestrator.
_WATCH_PATIENCE_S = 60.0
#: Pause between attempts to reconnect, besides the channel's own backoff.
_WATCH_PAUSE_S = 0.5


class EvaluationClient(ServiceClient):
    """Client of EvaluationService."""

    stub_class = pb_grpc.EvaluationServiceStub

    async def create(self, spec: EvaluationSpec, request_id: str = "", timeout_s: float | None = None) -> Evaluation:
        """Start a job, or return the one that the same `request_id` started before.

        An empty `request_id` is replaced by a fresh one, so that a call that the channel retries starts one job only.
        """
        request = pb.CreateEvaluationRequest(spec=spec_to_proto(spec), request_id=request_id or uuid.uuid4().hex)
        response = await self.call("CreateEvaluation", request, timeout_s, LONG_TIMEOUT_S)
        return evaluation_from_proto(response.evaluation)

    async def get(self, evaluation_id: str, timeout_s: float | None = None) -> Evaluation:
        """Return one job. Raises NotFoundError."""
        response = await self.call("GetEvaluation", pb.GetEvaluationRequest(evaluation_id=evaluation_id), timeout_s)
        return evaluation_from_proto(response.evaluation)

    async def page(self, page_size: int = 0, page_token: str = "", timeout_s: float | None = None) -> EvaluationPage:
        """Return a page of jobs, newest first."""
        request = pb.ListEvaluationsRequest(page_size=page_size, page_token=page_token)
        response = await self.call("ListEvaluations", request, timeout_s)
        jobs = tuple(evaluation_from_proto(evaluation) for evaluation in response.evaluations)
        return EvaluationPage(jobs, response.next_page_token)

    async def list(self) -> list[Evaluation]:
        """Return the jobs of all pages, newest first."""
        page = await self.page()
        jobs = list(page.evaluations)
        while page.next_page_token:
            page = await self.page(page_token=page.next_page_token)
            jobs += page.evaluations
        return jobs

    async def watch(self, evaluation_id: str, patience_s: float = _WATCH_PATIENCE_S) -> AsyncIterator[Evaluation]:
        """Yield the job's current state and every change until it ends.

        Servers close old connections and may restart: the stream is reopened on a new connection, and UnavailableError
        is raised only after `patience_s` seconds without one.
        """
        request = pb.WatchEvaluationRequest(evaluation_id=evaluation_id)
        last_job: Evaluation | None = None
        last_message_at = time.monotonic()
        while last_job is None or not last_job.state.ended:
            try:
                async for message in self.stream_of("WatchEvaluation", request, _WATCH_TIMEOUT_S):
                    last_message_at = time.monotonic()
                    job = evaluation_from_proto(message.evaluation)
                    if job != last_job:
                        last_job = job
                        yield job
            except UnavailableError:
                if last_job is None or time.monotonic() - last_message_at > patience_s:
                    raise
                await asyncio.sleep(_WATCH_PAUSE_S)

    async def cancel(self, evaluation_id: str, timeout_s: float | None = None) -> Evaluation:
        """Stop a job and return its state."""
        request = pb.CancelEvaluationRequest(evaluation_id=evaluation_id)
        return evaluation_from_proto((await self.call("CancelEvaluation", request, timeout_s)).evaluation)

    async def retry(self, evaluation_id: str, timeout_s: float | None = None) -> Evaluation:
        """Write the report of a failed job again and return the job's state."""
        request = pb.RetryEvaluationRequest(evaluation_id=evaluation_id)
        return evaluation_from_proto((await self.call("RetryEvaluation", request, timeout_s)).evaluation)

    async def delete(self, evaluation_id: str, timeout_s: float | None = None) -> None:
        """Forget a job that has ended; its files stay."""
        await self.call("DeleteEvaluation", pb.DeleteEvaluationRequest(evaluation_id=evaluation_id), timeout_s)

    async def report(self, evaluation_id: str, timeout_s: float | None = None) -> Report:
        """Return the report of a job that has ended."""
        response = await self.call("GetReport", pb.GetReportRequest(evaluation_id=evaluation_id), timeout_s)
        return Report(response.summary_json, response.summary_markdown, response.output_uri)
