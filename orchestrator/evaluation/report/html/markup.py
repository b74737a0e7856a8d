"""Build HTML and SVG. All values are escaped here, exactly once."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from orchestrator.evaluation.report.formatting import ReportTable

_MAX_LABEL = 44
_MAX_SHORT = 28


class Markup(str):
    """Text that is already HTML."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: object) -> Markup:
    """Return an element. Escapes children that are not Markup. `class_` means class, `stroke_width` stroke-width."""
    named = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(str(value), quote=True)}"'
        for name, value in attributes.items()
    )
    inside = "".join(child if isinstance(child, Markup) else escape(child) for child in children)
    return Markup(f"<{tag}{named}>{inside}</{tag}>")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """Return a table that scrolls on its own on a narrow page; the first cell of each row is its header."""
    head = element("tr", *(element("th", column, scope="col") for column in columns))
    body = [element("tr", element("th", row[0], scope="row"), *map(_cell, row[1:])) for row in rows]
    return element("div", element("table", element("thead", head), element("tbody", *body)), class_="scroll")


def _cell(text: str) -> Markup:
    """Return a cell; a short one, such as a number with its interval, does not wrap."""
    return element("td", text) if len(text) > _MAX_SHORT else element("td", text, class_="short")


def report_table(report: ReportTable | None, *below: Markup) -> Markup | None:
    """Return a section with a table of the report; None: there is no table."""
    if report is None:
        return None
    note = [element("p", report.note, class_="note")] if report.note else []
    return section(report.title, table(report.columns, report.rows), *note, *below)


def section(title: str, *children: str) -> Markup:
    """Return a section under a heading."""
    return element("section", element("h2", title), *children)


def paragraph(*children: str) -> Markup:
    """Return a paragraph."""
    return element("p", *children)


def label(text: str, limit: int = _MAX_LABEL) -> str:
    """Return text as one line, truncated for a chart."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
