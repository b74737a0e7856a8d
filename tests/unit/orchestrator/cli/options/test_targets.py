"""Where commands look for a tier."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.cli.options import targets
from orchestrator.cli.settings import environment
from orchestrator.devstack.stack import STATE_FILE


def test_flag_overrides_environment_overrides_running_stack_overrides_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "STACK_DIRS", (tmp_path,))
    environment.cache_clear()
    assert targets.target("retrieval").address == "127.0.0.1:50051"
    state = {"retrieval": "r:1", "generation": "g:1", "orchestrator": "o:1", "redis_url": "", "pid": os.getpid()}
    (tmp_path / STATE_FILE).write_text(json.dumps(state))
    assert targets.target("retrieval").address == "r:1"
    monkeypatch.setenv("LORARETRIEVER_CLIENT_RETRIEVAL_TARGET", "e:1")
    environment.cache_clear()
    assert targets.target("retrieval").address == "e:1"
    assert targets.target("retrieval", "f:1").address == "f:1"
    environment.cache_clear()


def test_stack_of_dead_process_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "STACK_DIRS", (tmp_path,))
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    state = {"retrieval": "r:1", "generation": "g:1", "orchestrator": "o:1", "redis_url": "", "pid": ended.pid}
    (tmp_path / STATE_FILE).write_text(json.dumps(state))
    assert targets.target("retrieval").address == "127.0.0.1:50051"
