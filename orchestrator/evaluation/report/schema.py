"""The JSON Schema of summary.json, generated from the types and kept in the repository as summary.schema.json."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from orchestrator.evaluation.report.summary import SCHEMA_VERSION, Summary

_SCHEMA_FILE = "summary.schema.json"


def summary_schema() -> dict[str, Any]:
    """Generate the schema of `Summary.to_json`, including its version."""
    schema = TypeAdapter(Summary).json_schema(mode="serialization")
    schema["properties"]["schema_version"] = {"const": SCHEMA_VERSION, "title": "Schema Version", "type": "integer"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def published_schema() -> dict[str, Any]:
    """Return the schema stored in the repository."""
    text = files(__package__).joinpath(_SCHEMA_FILE).read_text(encoding="utf-8")
    published: dict[str, Any] = json.loads(text)
    return published


def publish() -> None:
    """Generate the schema and store it in the repository."""
    text = json.dumps(summary_schema(), indent=2) + "\n"
    Path(__file__).with_name(_SCHEMA_FILE).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    publish()
