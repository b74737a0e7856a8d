"""The OpenAPI document of the gateway, docs/openapi.json, which `make schema` writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from orchestrator.gateway.app import routed
from orchestrator.gateway.services import Services

FILE = Path("docs/openapi.json")


def document() -> dict[str, Any]:
    """Return the document. The routes call no service to describe themselves."""
    return routed(cast(Services, None)).openapi()


def text() -> str:
    """Return the document as the file holds it."""
    return json.dumps(document(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
