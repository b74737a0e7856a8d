"""Run `loraretriever inspect --json`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orchestrator.cli.main import run


def run_inspect(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    """Return the exit status and the JSON output."""
    capsys.readouterr()
    status = run(["inspect", *map(str, arguments), "--json"])
    return status, json.loads(capsys.readouterr().out)
