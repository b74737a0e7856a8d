"""The OpenAPI document that is checked in."""

from __future__ import annotations

from pathlib import Path

from orchestrator.gateway.openapi import FILE, document, text

ROOT = Path(__file__).parents[4]


def test_checked_in_document_is_that_of_the_routes() -> None:
    stored = (ROOT / FILE).read_text(encoding="utf-8")
    assert stored == text(), "run: make schema"


def test_every_operation_documents_its_errors() -> None:
    for path, operations in document()["paths"].items():
        for method, operation in operations.items():
            assert "4XX" in operation["responses"], f"{method} {path}"
            assert "422" not in operation["responses"], f"{method} {path}"
