"""Charts as SVG: bars with intervals, parts of a whole, and counts by two names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.evaluation.report.html.markup import Markup, element, label

COLOURS = 10
WIDTH = 360
_LEFT, _RIGHT = 4, 4
_ROW, _BAR = 16, 9


@dataclass(frozen=True)
class Bar:
    """One bar: what it is named, its value and the ends of its interval (None: none), and which colour it has."""

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    text: str = ""
    colour: int = 0


def bars(groups: Mapping[str, Sequence[Bar]], *, low: float, high: float, title: str) -> Markup:
    """Return horizontal bars from zero, under the name of each group, on a scale from `low` to `high`."""
    span = (high - low) or 1.0

    def at(value: float) -> float:
        return round(_LEFT + (WIDTH - _LEFT - _RIGHT) * (min(max(value, low), high) - low) / span, 1)

    shapes: list[Markup] = []
    y = 0
    for group, members in groups.items():
        if group:
            shapes.append(element("text", label(group), x=_LEFT, y=y + 12, class_="group"))
            y += _ROW
        for bar in members:
            shapes += _row(bar, at, y)
            y += 2 * _ROW - 2
    return _svg(y + 2, title, shapes)


def parts(rows: Mapping[str, Sequence[tuple[int, float]]], title: str) -> Markup:
    """Return a bar for each row, made of its parts one after another: (colour, length), all on one scale."""
    longest = max((sum(length for _, length in row) for row in rows.values()), default=0.0) or 1.0
    shapes: list[Markup] = []
    for index, (name, row) in enumerate(rows.items()):
        y, x = index * (2 * _ROW), 0.0
        shapes.append(element("text", label(name), x=_LEFT, y=y + 11))
        for colour, length in row:
            width = (WIDTH - _LEFT - _RIGHT) * length / longest
            shapes.append(
                element(
                    "rect", x=round(_LEFT + x, 1), y=y + 15, width=round(width, 1), height=_BAR + 2, class_=_c(colour)
                )
            )
            x += width
    return _svg(len(rows) * 2 * _ROW + 2, title, shapes)


def heatmap(counts: Mapping[str, Mapping[str, int]], columns: Sequence[str], title: str) -> Markup:
    """Return counts as squares: a row for each name, darker where its share of the row is higher."""
    left, top, size = 112, 92, 18
    shapes: list[Markup] = []
    for index, column in enumerate(columns):
        x = left + index * size + 12
        shapes.append(
            element("text", label(column)[:16], transform=f"translate({x} {top - 4}) rotate(-60)", class_="small")
        )
    for line, (name, row) in enumerate(counts.items()):
        y, total = top + line * size, sum(row.values()) or 1
        shapes.append(element("text", label(name)[:18], x=left - 4, y=y + 12, text_anchor="end", class_="small"))
        for index, column in enumerate(columns):
            count = row.get(column, 0)
            if not count:
                continue
            x = left + index * size
            kind = "hit" if column == name else "miss"
            shapes.append(
                element(
                    "rect",
                    element("title", f"{name} → {column}: {count} of {total}"),
                    x=x,
                    y=y,
                    width=size - 2,
                    height=size - 2,
                    class_=kind,
                    fill_opacity=round(0.2 + 0.8 * count / total, 2),
                )
            )
            shapes.append(element("text", str(count), x=x + 8, y=y + 11, text_anchor="middle", class_="count"))
    width = left + len(columns) * size + 50
    return _svg(top + len(counts) * size + 4, title, shapes, width=max(width, WIDTH))


def legend(names: Sequence[str]) -> Markup:
    """Return the names with their colours, in the order of the colours."""
    items = [
        element("li", element("span", class_=f"swatch {_c(index)}"), " ", name) for index, name in enumerate(names)
    ]
    return element("ul", *items, class_="legend")


def _row(bar: Bar, at: Callable[[float], float], y: int) -> list[Markup]:
    shown = [
        element("text", f"{label(bar.name)}  {bar.text}", x=_LEFT, y=y + 11),
        element("line", x1=at(0.0), x2=at(0.0), y1=y + 14, y2=y + 25, class_="axis"),
    ]
    if bar.value is None:
        return shown
    start, end = sorted((at(0.0), at(bar.value)))
    shown.append(
        element("rect", x=start, y=y + 15, width=round(max(end - start, 0.5), 1), height=_BAR, class_=_c(bar.colour))
    )
    if bar.low is not None and bar.high is not None:
        middle = y + 15 + _BAR / 2
        shown.append(element("line", x1=at(bar.low), x2=at(bar.high), y1=middle, y2=middle, class_="interval"))
        shown += [
            element("line", x1=at(edge), x2=at(edge), y1=middle - 3, y2=middle + 3, class_="interval")
            for edge in (bar.low, bar.high)
        ]
    return shown


def _c(colour: int) -> str:
    return f"c{colour % COLOURS}"


def _svg(height: float, title: str, shapes: Sequence[Markup], width: int = WIDTH) -> Markup:
    return element("svg", element("title", title), *shapes, viewBox=f"0 0 {width} {height}", role="img", class_="chart")
