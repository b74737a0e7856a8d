"""Format numbers and tables as text and Markdown. Unscored values are an em dash, never zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.evaluation.metrics.uncertainty import Estimate

UNSCORED_TEXT = "—"
_MAX_TEXT = 300


@dataclass(frozen=True)
class ReportTable:
    """A table of a report. The first `text_columns` may hold unescaped foreign text; `note` explains the numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    text_columns: int = 1


def percent(share: float | None) -> str:
    """Format a share in [0, 1] in percent with one decimal."""
    return UNSCORED_TEXT if share is None else f"{100 * share:.1f}"


def percent_with_error(estimate: Estimate) -> str:
    """Format a share in percent with its standard error in percentage points, if that is not 0."""
    if estimate.value is None or not estimate.standard_error:
        return percent(estimate.value)
    return f"{percent(estimate.value)} ± {percent(estimate.standard_error)}"


def interval_text(estimate: Estimate, *, signed: bool = False) -> str:
    """Format an estimate in percent with its interval, as in 61.2 [55.0, 67.1]."""
    if estimate.value is None:
        return UNSCORED_TEXT
    form = "+.1f" if signed else ".1f"
    shown = format(100 * estimate.value, form)
    if estimate.low is None or estimate.high is None:
        return shown
    return f"{shown} [{format(100 * estimate.low, form)}, {format(100 * estimate.high, form)}]"


def decimal_with_error(estimate: Estimate) -> str:
    """Format a number with three decimals and its standard error, if that is not 0."""
    if estimate.value is None:
        return UNSCORED_TEXT
    error = f" ± {estimate.standard_error:.3f}" if estimate.standard_error else ""
    return f"{estimate.value:.3f}{error}"


def milliseconds(seconds: float | None) -> str:
    """Format seconds in milliseconds, with at least three significant digits."""
    if seconds is None:
        return UNSCORED_TEXT
    value = 1000 * seconds
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def pluralize(number: int, noun: str, plural: str = "") -> str:
    """Format a count, as in "1 sample" or "2,000 samples". `plural` is for nouns that do not just take an "s"."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def escape_inline(text: str) -> str:
    """Return foreign text as one truncated line with Markdown and HTML characters escaped."""
    line = " ".join(text.split())
    line = line if len(line) <= _MAX_TEXT else line[: _MAX_TEXT - 1] + "…"
    for character in "\\`*_[]|":
        line = line.replace(character, f"\\{character}")
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """Return a Markdown table, the first `text_columns` left-aligned, the others right-aligned. Cells are Markdown."""
    rule = [*[":---"] * text_columns, *["---:"] * (len(columns) - text_columns)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (columns, rule, *rows))
