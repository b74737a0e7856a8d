"""A typed client of EvaluationService: jobs as plain dataclasses, our own errors, a deadline always."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator

from loraretriever.v1 import orchestrator_service_pb2, orchestrator_service_pb2_grpc

from infra.contract.errors import UnavailableError
from orchestrator.clients import wire
from orchestrator.clients.base import ServiceClient
from orchestrator.clients.services import LONG_TIMEOUT_S, QUICK_TIMEOUT_S
from orchestrator.evaluation.spec import EvaluationSpec
from orchestrator.jobs.job import Evaluation, EvaluationPage, Report

WATCH_TIMEOUT_S = 7 * 86_400.0
WATCH_PATIENCE_S = 60.0
WATCH_PAUSE_S = 0.5


class EvaluationClient(ServiceClient):
    """EvaluationService: evaluation jobs."""

    stub_class = orchestrator_service_pb2_grpc.EvaluationServiceStub

    async def create(self, spec: EvaluationSpec, request_id: str = "", timeout_s: float | None = None) -> Evaluation:
        """Start a job, or return the one that `request_id` started before.

        An empty `request_id` becomes a fresh one, so that a call that the channel sends again starts one job.
        """
        request = orchestrator_service_pb2.CreateEvaluationRequest(
            spec=wire.spec_to_proto(spec), request_id=request_id or uuid.uuid4().hex
        )
        response = await self.call("CreateEvaluation", request, timeout_s or LONG_TIMEOUT_S)
        return wire.evaluation_from_proto(response.evaluation)

    async def get(self, evaluation_id: str, timeout_s: float | None = None) -> Evaluation:
        """Return one job. Raises NotFoundError."""
        request = orchestrator_service_pb2.GetEvaluationRequest(evaluation_id=evaluation_id)
        response = await self.call("GetEvaluation", request, timeout_s or QUICK_TIMEOUT_S)
        return wire.evaluation_from_proto(response.evaluation)

    async def page(self, page_size: int = 0, page_token: str = "", timeout_s: float | None = None) -> EvaluationPage:
        """Return a page of jobs, newest first."""
        request = orchestrator_service_pb2.ListEvaluationsRequest(page_size=page_size, page_token=page_token)
        response = await self.call("ListEvaluations", request, timeout_s or QUICK_TIMEOUT_S)
        jobs = tuple(wire.evaluation_from_proto(each) for each in response.evaluations)
        return EvaluationPage(jobs, response.next_page_token)

    async def list(self) -> list[Evaluation]:
        """Return the jobs of all pages, newest first."""
        page = await self.page()
        jobs = list(page.evaluations)
        while page.next_page_token:
            page = await self.page(page_token=page.next_page_token)
            jobs += page.evaluations
        return jobs

    async def watch(self, evaluation_id: str, patience_s: float = WATCH_PATIENCE_S) -> AsyncIterator[Evaluation]:
        """Yield the job now and whenever it moves, until it ends.

        Servers close old connections and may restart: the job is followed on over a new connection, unless none can
        be had for `patience_s` seconds (UnavailableError).
        """
        request = orchestrator_service_pb2.WatchEvaluationRequest(evaluation_id=evaluation_id)
        seen: Evaluation | None = None
        heard = time.monotonic()
        while seen is None or not seen.state.ended:
            try:
                async for message in self.stream_of("WatchEvaluation", request, WATCH_TIMEOUT_S):
                    heard = time.monotonic()
                    job = wire.evaluation_from_proto(message.evaluation)
                    if job != seen:
                        seen = job
                        yield job
            except UnavailableError:
                if seen is None or time.monotonic() - heard > patience_s:
                    raise
                await asyncio.sleep(WATCH_PAUSE_S)

    async def cancel(self, evaluation_id: str, timeout_s: float | None = None) -> Evaluation:
        """Stop a job; return it as it stands."""
        request = orchestrator_service_pb2.CancelEvaluationRequest(evaluation_id=evaluation_id)
        response = await self.call("CancelEvaluation", request, timeout_s or QUICK_TIMEOUT_S)
        return wire.evaluation_from_proto(response.evaluation)

    async def retry(self, evaluation_id: str, timeout_s: float | None = None) -> Evaluation:
        """Let the report of a job that failed be written anew; return the job as it stands."""
        request = orchestrator_service_pb2.RetryEvaluationRequest(evaluation_id=evaluation_id)
        response = await self.call("RetryEvaluation", request, timeout_s or QUICK_TIMEOUT_S)
        return wire.evaluation_from_proto(response.evaluation)

    async def delete(self, evaluation_id: str, timeout_s: float | None = None) -> None:
        """Forget a job that has ended; its files stay."""
        request = orchestrator_service_pb2.DeleteEvaluationRequest(evaluation_id=evaluation_id)
        await self.call("DeleteEvaluation", request, timeout_s or QUICK_TIMEOUT_S)

    async def report(self, evaluation_id: str, timeout_s: float | None = None) -> Report:
        """Return the report of a job that has ended."""
        request = orchestrator_service_pb2.GetReportRequest(evaluation_id=evaluation_id)
        response = await self.call("GetReport", request, timeout_s or QUICK_TIMEOUT_S)
        return Report(response.summary_json, response.summary_markdown, response.output_uri)
