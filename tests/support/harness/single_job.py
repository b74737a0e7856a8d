"""An orchestrator with one job that has ended already, without a server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from infra.contract.errors import NotFoundError
from orchestrator.cli.options.targets import OrchestratorTier
from orchestrator.evaluation.data.datasets import BadRow
from orchestrator.evaluation.job import Evaluation, EvaluationState, Report
from orchestrator.evaluation.records import Record
from orchestrator.evaluation.report.summarize import summarize
from orchestrator.evaluation.report.summary import JobFacts, Summary
from orchestrator.evaluation.spec import EvaluationSpec


@dataclass
class OneJob:
    """The job `ev-1`, ended in `state` with `records`. `specs` are those of the jobs that were created."""

    records: Sequence[Record]
    spec: EvaluationSpec
    state: EvaluationState = EvaluationState.SUCCEEDED
    planned: int | None = None
    specs: list[EvaluationSpec] = field(default_factory=list)
    calls: int = 0
    bad_rows: tuple[BadRow, ...] = ()

    @property
    def summary(self) -> Summary:
        facts = JobFacts(self.spec, "ev-1", self.state.value, self.planned or len(self.records), bad_rows=self.bad_rows)
        return summarize(self.records, facts)

    async def create(self, spec: EvaluationSpec, _request_id: str) -> Evaluation:
        self.specs.append(spec)
        return await self.get("ev-1")

    async def get(self, evaluation_id: str) -> Evaluation:
        self._check(evaluation_id)
        total = self.planned or len(self.records)
        return Evaluation("ev-1", self.spec, self.state, total, datetime(2026, 1, 1, tzinfo=UTC), "out/ev-1")

    async def list(self) -> list[Evaluation]:
        return [await self.get("ev-1")]

    async def retry(self, evaluation_id: str) -> Evaluation:
        return await self.get(evaluation_id)

    async def delete(self, evaluation_id: str) -> None:
        self._check(evaluation_id)

    async def watch(self, evaluation_id: str) -> AsyncIterator[Evaluation]:
        yield await self.get(evaluation_id)

    async def report(self, evaluation_id: str) -> Report:
        self._check(evaluation_id)
        return Report(json.dumps(self.summary.to_json()), "# Evaluation\n", "out/ev-1")

    def call(self, call: Callable[[Any], Awaitable[Any]]) -> Any:
        """Stand in for OrchestratorTier.call_evaluations."""
        self.calls += 1
        return asyncio.run(_awaited(call(self)))

    def serve(self, monkeypatch: pytest.MonkeyPatch) -> OneJob:
        """Answer the calls of every command."""
        monkeypatch.setattr(OrchestratorTier, "call_evaluations", lambda _, call: self.call(call))
        return self

    def _check(self, evaluation_id: str) -> None:
        if evaluation_id != "ev-1":
            raise NotFoundError(f"there is no evaluation {evaluation_id}")


async def _awaited(result: Awaitable[Any]) -> Any:
    return await result
