"""A job as a hash in Redis, and the request id that started it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from pydantic import TypeAdapter

from infra.contract.errors import AlreadyExistsError
from orchestrator.evaluation.job import Evaluation, EvaluationState
from orchestrator.evaluation.spec import EvaluationSpec
from orchestrator.jobs.ledger.types import NewEvaluation

PROGRESS_FIELDS = ("state", "done", "failed", "ended", "error", "report_error")
"""The fields of a job that change while it runs."""

_SPEC = TypeAdapter(EvaluationSpec)


def digest(spec: EvaluationSpec) -> str:
    """Return a digest that tells two specs apart.

    Fields with their default value are left out, so that a version that adds a field computes the same digest.
    """
    fields = _SPEC.dump_python(spec, mode="json", exclude_defaults=True)
    return uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(fields, sort_keys=True)).hex


def check_same_spec(evaluation_id: str, known_digest: str, asked: EvaluationSpec, request_id: str) -> None:
    """Raise AlreadyExistsError if the job of a request id was created from another spec than `asked`."""
    if known_digest != digest(asked):
        raise AlreadyExistsError(
            f"request_id {request_id!r} started evaluation {evaluation_id} with another spec; "
            "send a new request_id, or the spec of that job",
            evaluation_id=evaluation_id,
        )


def to_fields(evaluation_id: str, job: NewEvaluation, request_key: str) -> dict[str, Any]:
    """Return the hash of a new job."""
    return {
        "id": evaluation_id,
        "request": request_key,
        "spec": json.dumps(job.spec.to_json(), sort_keys=True),
        "state": EvaluationState.QUEUED.value,
        "total": job.total_samples,
        "done": 0,
        "failed": 0,
        "bad_rows": job.bad_row_count,
        "bad_row_list": json.dumps(list(job.bad_rows)),
        "provenance": json.dumps(job.provenance or {}),
        "created": datetime.now(UTC).isoformat(),
        "output_uri": f"{job.output_uri.rstrip('/')}/{evaluation_id}",
    }


def from_fields(fields: Mapping[str, str]) -> Evaluation:
    """Return the job of a hash."""
    job = Evaluation(
        evaluation_id=fields["id"],
        spec=EvaluationSpec.from_json(json.loads(fields["spec"])),
        state=EvaluationState(fields["state"]),
        total_samples=int(fields["total"]),
        create_time=datetime.fromisoformat(fields["created"]),
        output_uri=fields["output_uri"],
        bad_rows=int(fields["bad_rows"]),
    )
    return with_progress(job, fields)


def with_progress(job: Evaluation, fields: Mapping[str, str]) -> Evaluation:
    """Return a job with the PROGRESS_FIELDS of a hash."""
    report_error = fields.get("report_error", "")
    return replace(
        job,
        state=EvaluationState(fields["state"]),
        done_samples=int(fields["done"]),
        failed_samples=int(fields["failed"]),
        end_time=datetime.fromisoformat(fields["ended"]) if "ended" in fields else None,
        error=fields.get("error", ""),
        stalled=f"the report could not be stored and is tried again: {report_error}" if report_error else "",
    )
