"""summary.json keeps to its published schema."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.evaluation.report.schema import published_schema, summary_schema
from orchestrator.evaluation.report.summarize import summarize
from orchestrator.evaluation.report.summary import JobFacts
from orchestrator.evaluation.spec import DatasetSpec, EvaluatedStrategy, EvaluationSpec
from tests.support.harness.evaluation_data import answered, failure, sample

SPEC = EvaluationSpec(
    (DatasetSpec("clock", "clock.jsonl", "clock", "app"),),
    (EvaluatedStrategy(AnswerStrategy.MIXTURE), EvaluatedStrategy(AnswerStrategy.SELECTION)),
)


def content() -> Any:
    """Return what summary.json holds of a job with answers, a failure and a paired difference."""
    records = [
        answered(sample("Scroll up", episode=str(number), strategy=strategy), "Scroll up", ["clock"])
        for strategy in SPEC.strategies
        for number in range(3)
    ]
    records.append(failure(sample("Scroll up", episode="failed")))
    return json.loads(json.dumps(summarize(records, JobFacts(SPEC)).to_json()))


def test_the_published_schema_is_that_of_the_types() -> None:
    assert published_schema() == summary_schema()


def test_a_summary_is_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(published_schema())
    assert content()["differences"]
    jsonschema.validate(content(), published_schema())


@pytest.mark.parametrize(
    ("name", "value"), [("schema_version", 2), ("recorded_samples", "many"), ("groups", [{"strategy": "base"}])]
)
def test_a_summary_of_another_shape_is_refused(name: str, value: object) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**content(), name: value}, published_schema())
