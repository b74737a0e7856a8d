"""Screens in a terminal: two pixels a character, by half blocks."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.text import Text

COLUMNS = 36
UPPER_HALF = "▀"


def can_draw(console: Console) -> bool:
    """Return whether the console shows enough colours, and has room beside the screen."""
    return console.is_terminal and console.color_system in ("256", "truecolor") and console.width >= COLUMNS + 60


def draw(file: Path, columns: int = COLUMNS) -> Text:
    """Return the image in a file, scaled to `columns` characters a line."""
    with Image.open(file) as opened:
        rows = max(2, round(opened.height * columns / opened.width / 2) * 2)
        image = opened.convert("RGB").resize((columns, rows), Image.Resampling.LANCZOS)
    text = Text(no_wrap=True)
    for row in range(0, rows, 2):
        for column in range(columns):
            upper, lower = image.getpixel((column, row)), image.getpixel((column, row + 1))
            text.append(UPPER_HALF, style=f"{_colour(upper)} on {_colour(lower)}")
        text.append("\n")
    return text


def _colour(pixel: object) -> str:
    assert isinstance(pixel, tuple)
    red, green, blue = pixel
    return f"#{red:02x}{green:02x}{blue:02x}"
