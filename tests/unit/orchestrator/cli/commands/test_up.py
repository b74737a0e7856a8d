"""`loraretriever up`: what it says before anything is started."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from orchestrator.cli.main import run


@pytest.mark.parametrize("tier", ["retrieval", "generation", "orchestrator", "gateway"])
def test_taken_port_is_named_with_option_that_cures_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tier: str
) -> None:
    addresses = dict.fromkeys(("retrieval", "generation", "orchestrator", "gateway"), "127.0.0.1:0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        addresses[tier] = f"127.0.0.1:{taken.getsockname()[1]}"
        options = [word for name, address in addresses.items() for word in (f"--{name}-address", address)]
        assert run(["up", "--work-dir", str(tmp_path), *options]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert f"choose another --{tier}-address" in error
    assert "--free-ports" in error


def test_up_without_models_names_folder_of_demo_catalogue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".loraretriever/demo").mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert run(["up", "--retrieval-address", f"127.0.0.1:{taken.getsockname()[1]}"]) == 2
    assert "--work-dir .loraretriever/demo" in " ".join(capsys.readouterr().err.split())
