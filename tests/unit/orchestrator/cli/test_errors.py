"""Remedies that commands add to errors."""

from __future__ import annotations

import pytest

from infra.contract.errors import FailedPreconditionError, LoraRetrieverError, NotFoundError, UnavailableError
from orchestrator.cli.errors import message_of


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (NotFoundError("no job", evaluation_id="ev-1"), "'loraretriever evaluate list' lists the jobs"),
        (NotFoundError("no file", dataset="gmail"), "'loraretriever up --dataset-roots DIR' sets the folders"),
        (
            FailedPreconditionError("it runs", evaluation_id="ev-1", state="running"),
            "'loraretriever evaluate watch ev-1' follows the job",
        ),
        (
            FailedPreconditionError("it failed", evaluation_id="ev-1", state="failed"),
            "'loraretriever evaluate retry ev-1' writes the report",
        ),
    ],
)
def test_error_about_job_or_dataset_names_command_that_remedies_it(error: LoraRetrieverError, remedy: str) -> None:
    assert message_of(error).startswith(f"{error.message}; {remedy}")


def test_other_errors_are_printed_unchanged() -> None:
    assert message_of(NotFoundError("no adapter 'x'", adapter_id="x")) == "no adapter 'x'"
    assert message_of(UnavailableError("busy")) == "busy"
