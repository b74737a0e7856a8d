"""Output of commands."""

from __future__ import annotations

import pytest

from orchestrator.cli.output import print_text


def test_control_characters_of_answer_do_not_reach_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    print_text("a\x1b[2Jb\n")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    print_text("a\x1b[2Jb\n")
    assert capsys.readouterr().out == "a\x1b[2Jb\na\ufffd[2Jb\n"
