"""The JSON Schema of summary.json: kept in the repository as summary.schema.json, made from the types."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from orchestrator.evaluation.report.summary import SCHEMA_VERSION, Summary

SCHEMA_FILE = "summary.schema.json"


def summary_schema() -> dict[str, Any]:
    """Return the schema of what `Summary.to_json` writes, with the version it is for."""
    made = TypeAdapter(Summary).json_schema(mode="serialization")
    made["properties"]["schema_version"] = {"const": SCHEMA_VERSION, "title": "Schema Version", "type": "integer"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


def published_schema() -> dict[str, Any]:
    """Return the schema as it is kept beside this module."""
    text = files(__package__).joinpath(SCHEMA_FILE).read_text(encoding="utf-8")
    published: dict[str, Any] = json.loads(text)
    return published


def publish() -> None:
    """Write the schema of the types beside this module."""
    text = json.dumps(summary_schema(), indent=2) + "\n"
    Path(__file__).with_name(SCHEMA_FILE).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    publish()
