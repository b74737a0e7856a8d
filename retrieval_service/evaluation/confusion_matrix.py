"""A confusion matrix as a picture, .svg or .png."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from infra.contract.errors import InvalidArgumentError
from retrieval_service.evaluation.outcomes import Figures, labels_of

_CELL, _CHARACTER, _MARGIN, _FONT = 26, 7, 12, 12
_WHITE, _DARK = (255, 255, 255), (8, 48, 107)
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class _Box:
    x: int
    y: int
    fill: Colour


@dataclass(frozen=True)
class _Text:
    """Words that end at x, or start there, or stand around it; or run upwards from (x, y)."""

    x: int
    y: int
    words: str
    anchor: str = "middle"
    colour: Colour = (0, 0, 0)
    upwards: bool = False


def draw(found: Figures, file: Path) -> None:
    """Write the confusion matrix: a row an adapter, a column an adapter retrieved first, dark for many.

    Raises InvalidArgumentError for a file of another kind, or one that cannot be written.
    """
    labels = labels_of(found.confusion)
    edge = _MARGIN + _CHARACTER * max(len(one) for one in labels)
    size = edge + _CELL * len(labels) + _MARGIN
    shapes = list(_shapes(found, labels, edge))
    try:
        match file.suffix.lower():
            case ".svg":
                file.write_text(_svg(shapes, size), encoding="utf-8")
            case ".png":
                _png(shapes, size).save(file)
            case suffix:
                raise InvalidArgumentError("confusion", f"cannot draw {suffix!r} pictures; name a .svg or .png file")
    except OSError as error:
        raise InvalidArgumentError("confusion", f"{file} cannot be written: {error.strerror or error}") from error


def _shapes(found: Figures, labels: list[str], edge: int) -> Iterator[_Box | _Text]:
    most = max(found.confusion.values())
    for row, true in enumerate(labels):
        along = edge + _CELL * row + _CELL // 2
        yield _Text(edge - 4, along, true, anchor="end")
        yield _Text(along, edge - 4, true, upwards=True)
        for column, other in enumerate(labels):
            count = found.confusion.get((true, other), 0)
            share = count / most
            x, y = edge + _CELL * column, edge + _CELL * row
            yield _Box(x, y, _blend(share))
            if count:
                colour = _WHITE if share > 0.5 else _DARK
                yield _Text(x + _CELL // 2, y + _CELL // 2, str(count), colour=colour)


def _blend(share: float) -> Colour:
    red, green, blue = (round(light + (dark - light) * share) for light, dark in zip((240,) * 3, _DARK, strict=True))
    return red, green, blue


def _svg(shapes: list[_Box | _Text], size: int) -> str:
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size}" height="{size}" '
        f'font-family="sans-serif" font-size="{_FONT}">',
        f'<rect width="{size}" height="{size}" fill="white"/>',
    ]
    for shape in shapes:
        if isinstance(shape, _Box):
            colour = f"rgb{shape.fill}"
            lines.append(
                f'<rect x="{shape.x}" y="{shape.y}" width="{_CELL - 1}" height="{_CELL - 1}" fill="{colour}"/>'
            )
        else:
            turned = f' transform="rotate(-90 {shape.x} {shape.y})"' if shape.upwards else ""
            anchor = "start" if shape.upwards else shape.anchor
            lines.append(
                f'<text x="{shape.x}" y="{shape.y}" text-anchor="{anchor}" dominant-baseline="central" '
                f'fill="rgb{shape.colour}"{turned}>{escape(shape.words)}</text>'
            )
    return "\n".join([*lines, "</svg>", ""])


def _png(shapes: list[_Box | _Text], size: int) -> Image.Image:
    image = Image.new("RGB", (size, size), _WHITE)
    canvas, font = ImageDraw.Draw(image), ImageFont.load_default(_FONT)
    for shape in shapes:
        if isinstance(shape, _Box):
            canvas.rectangle((shape.x, shape.y, shape.x + _CELL - 2, shape.y + _CELL - 2), fill=shape.fill)
        elif shape.upwards:
            words = Image.new("RGB", (max(1, shape.y), _FONT + 4), _WHITE)
            ImageDraw.Draw(words).text((0, words.height // 2), shape.words, shape.colour, font, anchor="lm")
            image.paste(words.rotate(90, expand=True), (shape.x - words.height // 2, 0))
        else:
            anchor = {"middle": "mm", "end": "rm"}[shape.anchor]
            canvas.text((shape.x, shape.y), shape.words, shape.colour, font, anchor=anchor)
    return image
