"""Jobs as hashes in Redis, and the digests that compare the specs of a request id."""

from __future__ import annotations

from dataclasses import replace

import pytest

from infra.contract.errors import AlreadyExistsError
from orchestrator.evaluation.job import EvaluationState
from orchestrator.jobs.ledger.job_codec import check_same_spec, digest, from_fields, to_fields, with_progress
from tests.support.harness.job_ledger import SPEC, TWO_SHARDS


def test_digest_tells_specs_apart() -> None:
    assert digest(SPEC) == digest(replace(SPEC))
    assert digest(SPEC) != digest(replace(SPEC, seed=1))


def test_request_id_of_another_spec_names_its_job() -> None:
    check_same_spec("job-1", digest(SPEC), SPEC, "nightly")
    with pytest.raises(AlreadyExistsError, match=r"'nightly' started evaluation job-1"):
        check_same_spec("job-1", digest(replace(SPEC, seed=1)), SPEC, "nightly")


def test_new_job_is_read_from_its_fields() -> None:
    fields = {name: str(value) for name, value in to_fields("job-1", TWO_SHARDS, "request").items()}
    job = from_fields(fields)
    assert (job.evaluation_id, job.spec, job.state) == ("job-1", SPEC, EvaluationState.QUEUED)
    assert (job.total_samples, job.output_uri, job.end_time) == (4, "out/job-1", None)


def test_progress_of_postponed_report_is_a_stall_reason() -> None:
    fields = {name: str(value) for name, value in to_fields("job-1", TWO_SHARDS, "request").items()}
    progress = {"state": "running", "done": "4", "failed": "1", "report_error": "disk full"}
    job = with_progress(from_fields(fields), progress)
    assert (job.state, job.done_samples, job.failed_samples) == (EvaluationState.RUNNING, 4, 1)
    assert job.stalled == "the report could not be stored and is tried again: disk full"
