"""Glyphs: every element of a screen is one 28 x 28 cell, drawn from plain shapes, so that no font is needed.

A cell is exactly one visual token of Qwen2-VL (patch 14, merge 2), which makes screens legible to a tiny model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from PIL import Image, ImageDraw

CELL = 28
SCALE = 4
"""Glyphs are drawn four times larger and scaled down, for smooth edges."""

Draw = ImageDraw.ImageDraw
Point = tuple[float, float]
Colour = tuple[int, int, int]


def _poly(d: Draw, c: Colour, points: Sequence[Point]) -> None:
    d.polygon([(x * SCALE, y * SCALE) for x, y in points], fill=c)


def _box(d: Draw, c: Colour, /, x0: float, y0: float, x1: float, y1: float) -> None:  # noqa: PLR0917
    d.rectangle((x0 * SCALE, y0 * SCALE, x1 * SCALE, y1 * SCALE), fill=c)


def _disc(d: Draw, c: Colour, x: float, y: float, r: float) -> None:
    d.ellipse(((x - r) * SCALE, (y - r) * SCALE, (x + r) * SCALE, (y + r) * SCALE), fill=c)


def _ring(d: Draw, c: Colour, x: float, y: float, r: float, *, width: float = 2.5) -> None:
    box = ((x - r) * SCALE, (y - r) * SCALE, (x + r) * SCALE, (y + r) * SCALE)
    d.ellipse(box, outline=c, width=int(width * SCALE))


def _line(d: Draw, c: Colour, points: Sequence[Point], width: float = 3) -> None:
    d.line([(x * SCALE, y * SCALE) for x, y in points], fill=c, width=int(width * SCALE), joint="curve")


def _bag(d: Draw, c: Colour) -> None:
    _ring(d, c, 14, 10, 5)
    _poly(d, c, [(6, 11), (22, 11), (24, 24), (4, 24)])


def _heart(d: Draw, c: Colour) -> None:
    _disc(d, c, 9.5, 10, 5)
    _disc(d, c, 18.5, 10, 5)
    _poly(d, c, [(5, 12), (23, 12), (14, 24)])


def _star(d: Draw, c: Colour) -> None:
    _poly(d, c, [(14, 3), (17, 11), (25, 11), (19, 16), (21, 24), (14, 19), (7, 24), (9, 16), (3, 11), (11, 11)])


def _tag(d: Draw, c: Colour) -> None:
    _poly(d, c, [(4, 4), (14, 4), (24, 15), (15, 24), (4, 14)])
    _disc(d, (255, 255, 255), 9, 9, 2.2)


def _gift(d: Draw, c: Colour) -> None:
    _box(d, c, 5, 12, 12.5, 24)
    _box(d, c, 15.5, 12, 23, 24)
    _box(d, c, 4, 8, 24, 11)
    _line(d, c, [(8, 3), (14, 8), (20, 3)])


def _card(d: Draw, c: Colour) -> None:
    _box(d, c, 3, 7, 25, 10)
    _box(d, c, 3, 13, 25, 22)
    _box(d, (255, 255, 255), 6, 17, 12, 19)


def _bell(d: Draw, c: Colour) -> None:
    _disc(d, c, 14, 11, 6)
    _poly(d, c, [(8, 11), (20, 11), (23, 20), (5, 20)])
    _disc(d, c, 14, 22, 2.5)


def _gear(d: Draw, c: Colour) -> None:
    _box(d, c, 12, 3, 16, 25)
    _box(d, c, 3, 12, 25, 16)
    _line(d, c, [(7, 7), (21, 21)], 4)
    _line(d, c, [(21, 7), (7, 21)], 4)
    _disc(d, (255, 255, 255), 14, 14, 4)


def _lens(d: Draw, c: Colour) -> None:
    _ring(d, c, 12, 12, 8, width=3)
    _line(d, c, [(17, 17), (24, 24)], 4)


def _clock(d: Draw, c: Colour) -> None:
    _ring(d, c, 14, 14, 11)
    _line(d, c, [(14, 7), (14, 14), (20, 14)], 2.5)


def _plus(d: Draw, c: Colour) -> None:
    _box(d, c, 12, 4, 16, 24)
    _box(d, c, 4, 12, 24, 16)


def _bin(d: Draw, c: Colour) -> None:
    _box(d, c, 4, 6, 24, 9)
    _box(d, c, 11, 3, 17, 6)
    for x in (6.0, 12.0, 18.0):
        _box(d, c, x, 11, x + 4, 25)


def _pen(d: Draw, c: Colour) -> None:
    _poly(d, c, [(19, 3), (25, 9), (11, 23), (5, 17)])
    _poly(d, c, [(4, 19), (9, 24), (3, 25)])


def _flag(d: Draw, c: Colour) -> None:
    _box(d, c, 6, 3, 8, 25)
    _poly(d, c, [(8, 4), (24, 9), (8, 15)])


def _pin(d: Draw, c: Colour) -> None:
    _disc(d, c, 14, 10, 7)
    _poly(d, c, [(8, 13), (20, 13), (14, 26)])
    _disc(d, (255, 255, 255), 14, 10, 3)


def _car(d: Draw, c: Colour) -> None:
    _poly(d, c, [(8, 7), (19, 7), (23, 14), (5, 14)])
    _box(d, c, 2, 13, 26, 19)
    _disc(d, c, 8, 20, 3)
    _disc(d, c, 20, 20, 3)


def _key(d: Draw, c: Colour) -> None:
    _ring(d, c, 8, 14, 5.5, width=3)
    _box(d, c, 13, 12.5, 26, 15.5)
    _box(d, c, 22, 15, 25, 20)


def _folder(d: Draw, c: Colour) -> None:
    _box(d, c, 3, 5, 12, 9)
    _box(d, c, 3, 9, 25, 23)


def _mail(d: Draw, c: Colour) -> None:
    _box(d, c, 3, 6, 25, 22)
    _line(d, (255, 255, 255), [(3, 7), (14, 16), (25, 7)], 2)


def _person(d: Draw, c: Colour) -> None:
    _disc(d, c, 14, 8, 5)
    _poly(d, c, [(9, 15), (19, 15), (24, 25), (4, 25)])


def _play(d: Draw, c: Colour) -> None:
    _poly(d, c, [(7, 3), (25, 14), (7, 25)])


def _note(d: Draw, c: Colour) -> None:
    _disc(d, c, 9, 21, 4)
    _box(d, c, 11, 4, 13, 21)
    _poly(d, c, [(13, 4), (22, 8), (22, 13), (13, 9)])


def _cup(d: Draw, c: Colour) -> None:
    _poly(d, c, [(4, 8), (19, 8), (17, 24), (6, 24)])
    _ring(d, c, 20, 14, 5)


def _list(d: Draw, c: Colour) -> None:
    for y in (6.0, 13.0, 20.0):
        _disc(d, c, 5.5, y + 1.5, 2)
        _box(d, c, 10, y, 25, y + 3)


def _share(d: Draw, c: Colour) -> None:
    _line(d, c, [(21, 6), (7, 14), (21, 22)], 2)
    for x, y in ((21, 6), (7, 14), (21, 22)):
        _disc(d, c, x, y, 4)


def _arrow(d: Draw, c: Colour) -> None:
    _box(d, c, 12, 3, 16, 15)
    _poly(d, c, [(5, 14), (23, 14), (14, 25)])


def _back(d: Draw, c: Colour) -> None:
    _box(d, c, 13, 12, 25, 16)
    _poly(d, c, [(14, 5), (14, 23), (3, 14)])


def _toggle(d: Draw, c: Colour) -> None:
    _disc(d, c, 9, 14, 7)
    _disc(d, c, 19, 14, 7)
    _box(d, c, 9, 7, 19, 21)
    _disc(d, (255, 255, 255), 9, 14, 5)


def _lit(d: Draw, c: Colour) -> None:
    _disc(d, c, 9, 14, 7)
    _disc(d, c, 19, 14, 7)
    _box(d, c, 9, 7, 19, 21)
    _disc(d, (255, 255, 255), 19, 14, 5)


def _keys(d: Draw, c: Colour) -> None:
    for y in (6.0, 12.0):
        for x in (3.0, 9.0, 15.0, 21.0):
            _box(d, c, x, y, x + 4, y + 4)
    _box(d, c, 7, 18, 21, 22)


def _tick(d: Draw, c: Colour) -> None:
    _disc(d, c, 14, 14, 12)
    _line(d, (255, 255, 255), [(7, 14), (12, 19), (21, 8)], 3)


def _spinner(d: Draw, c: Colour) -> None:
    for x, y in ((14, 4), (21, 7), (24, 14), (21, 21), (14, 24), (7, 21), (4, 14), (7, 7)):
        _disc(d, c, x, y, 2.6)


def _house(d: Draw, c: Colour) -> None:
    _poly(d, c, [(14, 3), (26, 14), (2, 14)])
    _box(d, c, 6, 14, 22, 25)


_RED, _BLUE, _GREEN, _AMBER, _PURPLE, _SLATE = (
    (200, 40, 50), (30, 90, 200), (20, 140, 70), (215, 140, 10), (125, 50, 170), (60, 70, 85),
)  # fmt: skip

GLYPHS: dict[str, tuple[Callable[[Draw, Colour], None], Colour]] = {
    "bag": (_bag, _BLUE),
    "heart": (_heart, _RED),
    "star": (_star, _AMBER),
    "tag": (_tag, _GREEN),
    "gift": (_gift, _PURPLE),
    "card": (_card, _BLUE),
    "bell": (_bell, _AMBER),
    "gear": (_gear, _SLATE),
    "lens": (_lens, _SLATE),
    "clock": (_clock, _BLUE),
    "plus": (_plus, _GREEN),
    "bin": (_bin, _RED),
    "pen": (_pen, _PURPLE),
    "flag": (_flag, _RED),
    "pin": (_pin, _RED),
    "car": (_car, _BLUE),
    "key": (_key, _AMBER),
    "folder": (_folder, _AMBER),
    "mail": (_mail, _BLUE),
    "person": (_person, _PURPLE),
    "play": (_play, _RED),
    "note": (_note, _GREEN),
    "cup": (_cup, _PURPLE),
    "list": (_list, _SLATE),
    "share": (_share, _GREEN),
    "arrow": (_arrow, _SLATE),
    "back": (_back, _PURPLE),
    "toggle": (_toggle, _SLATE),
    "lit": (_lit, _GREEN),
    "keys": (_keys, _SLATE),
    "tick": (_tick, _GREEN),
    "spinner": (_spinner, _BLUE),
    "house": (_house, _SLATE),
}
"""Glyph name -> drawing function and colour."""


@cache
def tile(name: str, background: Colour, colour: Colour | None = None, dx: int = 0, dy: int = 0) -> Image.Image:
    """Return one cell with glyph `name` (empty for ""), shifted by (dx, dy) pixels."""
    if not name:
        return Image.new("RGB", (CELL, CELL), background)
    draw, own = GLYPHS[name]
    large = Image.new("RGB", (CELL * SCALE, CELL * SCALE), background)
    draw(ImageDraw.Draw(large), colour or own)
    small = large.resize((CELL, CELL), Image.Resampling.BOX)
    cell = Image.new("RGB", (CELL, CELL), background)
    cell.paste(small, (dx, dy))
    return cell
