"""summary.json: the published schema matches the types and real summaries."""

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
    """Return summary.json of a job with answers, a failure and a paired difference."""
    records = [
        answered(sample("Scroll up", episode=str(number), strategy=strategy), "Scroll up", ["clock"])
        for strategy in SPEC.strategies
        for number in range(3)
    ]
    records.append(failure(sample("Scroll up", episode="failed")))
    return json.loads(json.dumps(summarize(records, JobFacts(SPEC)).to_json()))


def without_descriptions(schema: Any) -> Any:
    """Drop the descriptions, which are docstrings and may be improved without a new version of the schema."""
    if isinstance(schema, dict):
        return {
            name: without_descriptions(value)
            for name, value in schema.items()
            if not (name == "description" and isinstance(value, str))
        }
    return [without_descriptions(value) for value in schema] if isinstance(schema, list) else schema


def test_published_schema_has_fields_of_types() -> None:
    assert without_descriptions(published_schema()) == without_descriptions(summary_schema())


def test_summary_is_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(published_schema())
    assert content()["differences"]
    jsonschema.validate(content(), published_schema())


@pytest.mark.parametrize(
    ("name", "value"), [("schema_version", 2), ("recorded_samples", "many"), ("groups", [{"strategy": "base"}])]
)
def test_summary_of_another_shape_is_refused(name: str, value: object) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**content(), name: value}, published_schema())
