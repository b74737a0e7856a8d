"""What `up` prints."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from orchestrator.cli.commands.up import exports
from orchestrator.cli.options import targets
from orchestrator.devstack.stack import STATE_FILE, Addresses


def test_up_prints_exports_for_tiers_at_other_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "STACK_DIRS", (tmp_path,))
    defaults = Addresses(**targets.DEFAULTS, redis_url="", pid=os.getpid())
    moved = replace(defaults, orchestrator="127.0.0.1:7")
    lines = [
        "export LORARETRIEVER_CLIENT_RETRIEVAL_TARGET=127.0.0.1:50051",
        "export LORARETRIEVER_CLIENT_ORCHESTRATOR_TARGET=127.0.0.1:",
    ]
    assert exports(defaults) == []
    assert exports(moved) == [lines[0], f"{lines[1]}7"]
    (tmp_path / STATE_FILE).write_text(json.dumps(asdict(moved)))
    assert exports(defaults) == [lines[0], f"{lines[1]}50053"]
