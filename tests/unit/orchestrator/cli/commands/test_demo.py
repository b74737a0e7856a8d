"""Screens that the demo draws in a terminal."""

from __future__ import annotations

from pathlib import Path

from orchestrator.cli.commands.demo import draw_screen
from tests.support.harness.images import picture


def test_screen_is_drawn_two_pixels_a_character(tmp_path: Path) -> None:
    picture(112, 140).save(tmp_path / "screen.png")
    lines = draw_screen(tmp_path / "screen.png", columns=20).plain.splitlines()
    assert (len(lines), len(lines[0])) == (12, 20)
