"""Draws a confusion matrix to an .svg or .png file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from infra.contract.errors import InvalidArgumentError
from retrieval_service.evaluation.outcomes import Scores, labels_of

_CELL, _CHARACTER, _MARGIN, _FONT = 26, 7, 12, 12  # pixels; _CHARACTER is the width of a letter
_WHITE, _DARK = (255, 255, 255), (8, 48, 107)
_Colour = tuple[int, int, int]


@dataclass(frozen=True)
class _Box:
    x: int
    y: int
    fill: _Colour


@dataclass(frozen=True)
class _Text:
    """Text anchored at (x, y): `anchor` is SVG's text-anchor. `upwards` rotates it by 90 degrees."""

    x: int
    y: int
    content: str
    anchor: str = "middle"
    colour: _Colour = (0, 0, 0)
    upwards: bool = False


def draw_confusion_matrix(scores: Scores, file: Path) -> None:
    """Write the confusion matrix: one row per adapter, one column per adapter retrieved first, darker for more.

    Raises InvalidArgumentError if the file is neither .svg nor .png, or cannot be written.
    """
    labels = labels_of(scores.confusion)
    edge = _MARGIN + _CHARACTER * max(map(len, labels))
    size = edge + _CELL * len(labels) + _MARGIN
    shapes = list(_shapes(scores, labels, edge))
    try:
        match file.suffix.lower():
            case ".svg":
                file.write_text(_svg(shapes, size), encoding="utf-8")
            case ".png":
                _png(shapes, size).save(file)
            case suffix:
                raise InvalidArgumentError("confusion", f"cannot draw {suffix!r} files; choose a .svg or .png file")
    except OSError as error:
        raise InvalidArgumentError("confusion", f"{file} cannot be written: {error.strerror or error}") from error


def _shapes(scores: Scores, labels: list[str], edge: int) -> Iterator[_Box | _Text]:
    most = max(scores.confusion.values())
    for row, true in enumerate(labels):
        center = edge + _CELL * row + _CELL // 2
        yield _Text(edge - 4, center, true, anchor="end")
        yield _Text(center, edge - 4, true, upwards=True)
        for column, other in enumerate(labels):
            count = scores.confusion.get((true, other), 0)
            share = count / most
            x, y = edge + _CELL * column, edge + _CELL * row
            yield _Box(x, y, _blend(share))
            if count:
                colour = _WHITE if share > 0.5 else _DARK
                yield _Text(x + _CELL // 2, y + _CELL // 2, str(count), colour=colour)


def _blend(share: float) -> _Colour:
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
            rotation = f' transform="rotate(-90 {shape.x} {shape.y})"' if shape.upwards else ""
            anchor = "start" if shape.upwards else shape.anchor
            lines.append(
                f'<text x="{shape.x}" y="{shape.y}" text-anchor="{anchor}" dominant-baseline="central" '
                f'fill="rgb{shape.colour}"{rotation}>{escape(shape.content)}</text>'
            )
    return "\n".join([*lines, "</svg>", ""])


def _png(shapes: list[_Box | _Text], size: int) -> Image.Image:
    image = Image.new("RGB", (size, size), _WHITE)
    canvas, font = ImageDraw.Draw(image), ImageFont.load_default(_FONT)
    for shape in shapes:
        if isinstance(shape, _Box):
            canvas.rectangle((shape.x, shape.y, shape.x + _CELL - 2, shape.y + _CELL - 2), fill=shape.fill)
        elif shape.upwards:
            rotated = Image.new("RGB", (max(1, shape.y), _FONT + 4), _WHITE)
            ImageDraw.Draw(rotated).text((0, rotated.height // 2), shape.content, shape.colour, font, anchor="lm")
            image.paste(rotated.rotate(90, expand=True), (shape.x - rotated.height // 2, 0))
        else:
            anchor = {"middle": "mm", "end": "rm"}[shape.anchor]
            canvas.text((shape.x, shape.y), shape.content, shape.colour, font, anchor=anchor)
    return image
