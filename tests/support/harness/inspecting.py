"""Run `loraretriever inspect --json`, and the checkpoints it is run on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.main import run
from tests.support.checkpoints.internvl2 import write_internvl2
from tests.support.checkpoints.qwen2_5_vl import write_qwen2_5_vl
from tests.support.checkpoints.qwen2_vl import TinyShape, write_qwen2_vl

WRITERS: dict[str, Callable[..., Path]] = {
    "qwen2_vl": write_qwen2_vl,
    "qwen2_5_vl": write_qwen2_5_vl,
    "internvl_chat": write_internvl2,
}
SHAPE = TinyShape()


def run_inspect(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    """Return the exit status and the JSON output."""
    capsys.readouterr()
    status = run(["inspect", *map(str, arguments), "--json"])
    return status, json.loads(capsys.readouterr().out)
