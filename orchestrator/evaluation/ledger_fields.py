"""A job as the ledger's hash holds it, and the request id that started it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from datetime import datetime

from infra.contract.errors import AlreadyExistsError
from orchestrator.evaluation.job import Evaluation, EvaluationState
from orchestrator.evaluation.spec import EvaluationSpec


def digest(spec: str) -> str:
    """Return what tells two specs apart."""
    return uuid.uuid5(uuid.NAMESPACE_OID, spec).hex


def same_job(known: str, spec: EvaluationSpec, request_id: str) -> str:
    """Return the id in `known`, "id digest"; AlreadyExistsError when it belongs to another spec."""
    evaluation_id, known_digest = known.split(" ")
    if known_digest != digest(json.dumps(spec.to_json(), sort_keys=True)):
        raise AlreadyExistsError(
            f"request_id {request_id!r} started evaluation {evaluation_id} with another spec; "
            "send a new request_id, or the spec of that job",
            evaluation_id=evaluation_id,
        )
    return evaluation_id


def evaluation_of(fields: Mapping[str, str]) -> Evaluation:
    """Return a job."""
    return Evaluation(
        evaluation_id=fields["id"],
        spec=EvaluationSpec.from_json(json.loads(fields["spec"])),
        state=EvaluationState(fields["state"]),
        total_samples=int(fields["total"]),
        create_time=datetime.fromisoformat(fields["created"]),
        output_uri=fields["output_uri"],
        done_samples=int(fields["done"]),
        failed_samples=int(fields["failed"]),
        bad_rows=int(fields["bad_rows"]),
        end_time=datetime.fromisoformat(fields["ended"]) if "ended" in fields else None,
        error=fields.get("error", ""),
    )
