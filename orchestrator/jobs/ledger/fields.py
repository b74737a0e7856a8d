"""A job as the ledger's hash holds it, and the request id that started it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from pydantic import TypeAdapter

from infra.contract.errors import AlreadyExistsError
from orchestrator.evaluation.spec import EvaluationSpec
from orchestrator.jobs.job import Evaluation, EvaluationState

PROGRESS = ("state", "done", "failed", "ended", "error", "report_error")
"""The fields of a job that change while it runs."""

_SPEC = TypeAdapter(EvaluationSpec)


def digest(spec: EvaluationSpec) -> str:
    """Return what tells two specs apart; fields that hold their default do not count, nor does who adds new ones."""
    said = _SPEC.dump_python(spec, mode="json", exclude_defaults=True)
    return uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(said, sort_keys=True)).hex


def same_job(known: str, asked: EvaluationSpec, request_id: str) -> str:
    """Return the id in `known`, "id digest"; AlreadyExistsError when it was asked for by another spec."""
    evaluation_id, known_digest = known.split(" ")
    if known_digest != digest(asked):
        raise AlreadyExistsError(
            f"request_id {request_id!r} started evaluation {evaluation_id} with another spec; "
            "send a new request_id, or the spec of that job",
            evaluation_id=evaluation_id,
        )
    return evaluation_id


def evaluation_of(fields: Mapping[str, str]) -> Evaluation:
    """Return a job."""
    job = Evaluation(
        evaluation_id=fields["id"],
        spec=EvaluationSpec.from_json(json.loads(fields["spec"])),
        state=EvaluationState(fields["state"]),
        total_samples=int(fields["total"]),
        create_time=datetime.fromisoformat(fields["created"]),
        output_uri=fields["output_uri"],
        bad_rows=int(fields["bad_rows"]),
    )
    return moved(job, fields)


def moved(job: Evaluation, fields: Mapping[str, str]) -> Evaluation:
    """Return a job with the PROGRESS that `fields` say."""
    said = fields.get("report_error", "")
    return replace(
        job,
        state=EvaluationState(fields["state"]),
        done_samples=int(fields["done"]),
        failed_samples=int(fields["failed"]),
        end_time=datetime.fromisoformat(fields["ended"]) if "ended" in fields else None,
        error=fields.get("error", ""),
        stalled=f"the report could not be stored and is tried again: {said}" if said else "",
    )
