"""Text to HTML and SVG: every value is escaped here, once."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from orchestrator.evaluation.report.formatting import ReportTable

MAX_LABEL = 44
MAX_SHORT = 28


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: object) -> Markup:
    """Return an element. Children that are not Markup are escaped; `class_` is class, `stroke_width` stroke-width."""
    named = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(str(value), quote=True)}"'
        for name, value in attributes.items()
    )
    inside = "".join(child if isinstance(child, Markup) else escape(child) for child in children)
    return Markup(f"<{tag}{named}>{inside}</{tag}>")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """Return a table that scrolls by itself where the page is narrow; the first cell of a row names it."""
    head = element("tr", *(element("th", column, scope="col") for column in columns))
    body = [element("tr", element("th", row[0], scope="row"), *map(_cell, row[1:])) for row in rows]
    return element("div", element("table", element("thead", head), element("tbody", *body)), class_="scroll")


def _cell(text: str) -> Markup:
    """Return a cell; a number with its interval stays in one line."""
    return element("td", text) if len(text) > MAX_SHORT else element("td", text, class_="short")


def report_table(found: ReportTable | None, *below: Markup) -> Markup | None:
    """Return a section of a report's table, None of none."""
    if found is None:
        return None
    note = [element("p", found.note, class_="note")] if found.note else []
    return section(found.title, table(found.columns, found.rows), *note, *below)


def section(title: str, *children: str) -> Markup:
    """Return a section under a heading."""
    return element("section", element("h2", title), *children)


def paragraph(*children: str) -> Markup:
    """Return a paragraph."""
    return element("p", *children)


def label(text: str, most: int = MAX_LABEL) -> str:
    """Return text short enough for a chart."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"
