"""SVG charts: bars with intervals, stacked bars, and heatmaps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.evaluation.report.html.markup import Markup, element, label

_COLOURS = 10
_WIDTH = 360
_MAX_BARS = 60
_MAX_TICK = 28
_PALEST, _DARKEST = 0.1, 0.5
_LEFT, _RIGHT = 4, 4
_ROW, _BAR = 16, 9


@dataclass(frozen=True)
class Bar:
    """One bar: its name, its value and interval (None: absent), the text beside its name, and its colour index."""

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    text: str = ""
    colour: int = 0


@dataclass(frozen=True)
class Stack:
    """A stacked bar: its name, its colour index in other charts, and the lengths of its parts."""

    name: str
    colour: int
    lengths: Sequence[float]


def bar_chart(groups: Mapping[str, Sequence[Bar]], *, low: float, high: float, title: str) -> Markup:
    """Return horizontal bars from zero, grouped under the name of each group, on a scale from `low` to `high`."""
    span = (high - low) or 1.0

    def at(value: float) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * (min(max(value, low), high) - low) / span, 1)

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


def share_charts(groups: Mapping[str, Sequence[Bar]], title: str) -> list[Markup]:
    """Return bars of shares in [0, 1]; if there are many, each group is collapsed."""
    if sum(map(len, groups.values())) <= _MAX_BARS:
        return [bar_chart(groups, low=0, high=1, title=title)]
    return [
        element("details", element("summary", name), bar_chart({"": members}, low=0, high=1, title=f"{title}: {name}"))
        for name, members in groups.items()
    ]


def stacked_bar_chart(rows: Sequence[Stack], title: str) -> Markup:
    """Return one stacked bar per row, all on one scale; see `legend` for the parts."""
    longest = max((sum(row.lengths) for row in rows), default=0.0) or 1.0
    shapes: list[Markup] = []
    for index, row in enumerate(rows):
        y, x = index * (2 * _ROW), 0.0
        shapes.append(element("circle", cx=_LEFT + 4, cy=y + 8, r=3.5, class_=_colour_class(row.colour)))
        shapes.append(element("text", label(row.name), x=_LEFT + 12, y=y + 11))
        for part, length in enumerate(row.lengths):
            width = (_WIDTH - _LEFT - _RIGHT) * length / longest
            shapes.append(
                element(
                    "rect", x=round(_LEFT + x, 1), y=y + 15, width=round(width, 1), height=_BAR + 2, class_=f"p{part}"
                )
            )
            x += width
    return _svg(len(rows) * 2 * _ROW + 2, title, shapes)


def heatmap(counts: Mapping[str, Mapping[str, int]], columns: Sequence[str], title: str) -> Markup:
    """Return counts as squares, one row per name; the higher the share of the row, the darker the square.

    The darkest square is still light enough to read the count on it.
    """
    longest = max((len(label(name, _MAX_TICK)) for name in (*counts, *columns)), default=0)
    left, top, size = 12 + 5 * longest, 14 + round(4.5 * longest), 18
    shapes: list[Markup] = []
    for index, column in enumerate(columns):
        x = left + index * size + 12
        shapes.append(
            element("text", label(column, _MAX_TICK), transform=f"translate({x} {top - 4}) rotate(-60)", class_="small")
        )
    for line, (name, row) in enumerate(counts.items()):
        y, total = top + line * size, sum(row.values()) or 1
        shapes.append(element("text", label(name, _MAX_TICK), x=left - 4, y=y + 12, text_anchor="end", class_="small"))
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
                    fill_opacity=round(_PALEST + (_DARKEST - _PALEST) * count / total, 2),
                )
            )
            shapes.append(element("text", str(count), x=x + 8, y=y + 11, text_anchor="middle", class_="count"))
    width = left + len(columns) * size + round(2.5 * longest) + 8
    return _svg(top + len(counts) * size + 4, title, shapes, width=max(width, _WIDTH))


def legend(names: Sequence[str]) -> Markup:
    """Return the names of the parts of a `Stack` with their shades, in order."""
    items = [element("li", element("span", class_=f"swatch p{index}"), " ", name) for index, name in enumerate(names)]
    return element("ul", *items, class_="legend")


def _row(bar: Bar, at: Callable[[float], float], y: int) -> list[Markup]:
    shown = [
        element("text", f"{label(bar.name)}: {bar.text}" if bar.text else label(bar.name), x=_LEFT, y=y + 11),
        element("line", x1=at(0.0), x2=at(0.0), y1=y + 14, y2=y + 25, class_="axis"),
    ]
    if bar.value is None:
        return shown
    start, end = sorted((at(0.0), at(bar.value)))
    shown.append(
        element(
            "rect",
            x=start,
            y=y + 15,
            width=round(max(end - start, 0.5), 1),
            height=_BAR,
            class_=_colour_class(bar.colour),
        )
    )
    if bar.low is not None and bar.high is not None:
        middle = y + 15 + _BAR / 2
        shown.append(element("line", x1=at(bar.low), x2=at(bar.high), y1=middle, y2=middle, class_="interval"))
        shown += [
            element("line", x1=at(edge), x2=at(edge), y1=middle - 3, y2=middle + 3, class_="interval")
            for edge in (bar.low, bar.high)
        ]
    return shown


def _colour_class(colour: int) -> str:
    return f"c{colour % _COLOURS}"


def _svg(height: float, title: str, shapes: Sequence[Markup], width: int = _WIDTH) -> Markup:
    return element("svg", element("title", title), *shapes, viewBox=f"0 0 {width} {height}", role="img", class_="chart")
