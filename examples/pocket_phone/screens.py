"""Screens: an app bar over a 4 x 4 grid of cells, as data and as a PNG.

One cell is one visual token, so a screen of 4 x 5 cells costs the model 20 tokens.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from PIL import Image

from examples.pocket_phone.apps import APPS
from examples.pocket_phone.glyphs import CELL, Colour, tile

COLUMNS, ROWS = 4, 4
HOME = "home"
WIDTH, HEIGHT = COLUMNS * CELL, (ROWS + 1) * CELL

_SHADES: tuple[Colour, ...] = (
    (255, 255, 255), (246, 246, 250), (250, 246, 240), (240, 248, 246), (248, 240, 244), (238, 238, 238),
)  # fmt: skip
SHADES = len(_SHADES)
_HOME_BAR: Colour = (120, 128, 140)
_WHITE: Colour = (255, 255, 255)


@dataclass(frozen=True)
class Screen:
    """The contents of a screen.

    `app` is in the bar (an app's name or `home`). Each of the 16 `cells` is "" for nothing, a glyph's name, or `@app`
    for an app's icon. `shade` selects the background; `dx`, `dy` shift the glyphs by a pixel.
    """

    app: str
    cells: tuple[str, ...]
    shade: int = 0
    dx: int = 0
    dy: int = 0

    def key(self) -> int:
        """Return a hash of everything visible, the same in every process."""
        return int.from_bytes(hashlib.blake2b(repr(self).encode(), digest_size=6).digest(), "big")

    def render(self) -> Image.Image:
        """Draw the screen, 112 x 140 pixels."""
        image = Image.new("RGB", (WIDTH, HEIGHT), _SHADES[self.shade])
        bar = _HOME_BAR if self.app == HOME else APPS[self.app].colour
        image.paste(bar, (0, 0, WIDTH, CELL))
        emblem = "house" if self.app == HOME else APPS[self.app].emblem
        image.paste(tile(emblem, bar, _WHITE), (0, 0))
        for number, name in enumerate(self.cells):
            if name:
                row, column = divmod(number, COLUMNS)
                image.paste(self._cell(name), (column * CELL, (row + 1) * CELL))
        return image

    def _cell(self, name: str) -> Image.Image:
        if name.startswith("@"):
            app = APPS[name[1:]]
            return tile(app.emblem, app.colour, _WHITE, self.dx, self.dy)
        return tile(name, _SHADES[self.shade], None, self.dx, self.dy)

    def concepts(self) -> list[str]:
        """Return what each of the 20 visual tokens shows, bar first: `@app`, `@home`, a glyph's name or ""."""
        return [f"@{self.app}", *[f"={self.app}"] * (COLUMNS - 1), *self.cells]
