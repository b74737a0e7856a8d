"""Numbers and tables as Markdown text. What is unscored is an em dash, never a zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.evaluation.metrics.uncertainty import Estimate

UNSCORED_TEXT = "—"
MAX_TEXT = 300


@dataclass(frozen=True)
class ReportTable:
    """A table whose first `text_columns` may hold foreign text, not escaped yet; `note` says what the numbers are."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    text_columns: int = 1


def percent(share: float | None) -> str:
    """Return a share in [0, 1] in percent with one decimal."""
    return UNSCORED_TEXT if share is None else f"{100 * share:.1f}"


def percent_with_error(estimate: Estimate) -> str:
    """Return a share in percent and its standard error in percentage points, where a spread was seen."""
    if estimate.value is None or not estimate.standard_error:
        return percent(estimate.value)
    return f"{percent(estimate.value)} ± {percent(estimate.standard_error)}"


def interval_text(estimate: Estimate, *, signed: bool = False) -> str:
    """Return an estimate in percent with its interval, as in 61.2 [55.0, 67.1]."""
    if estimate.value is None:
        return UNSCORED_TEXT
    form = "+.1f" if signed else ".1f"
    shown = format(100 * estimate.value, form)
    if estimate.low is None or estimate.high is None:
        return shown
    return f"{shown} [{format(100 * estimate.low, form)}, {format(100 * estimate.high, form)}]"


def decimal_with_error(estimate: Estimate) -> str:
    """Return a number with three decimals and its standard error, where a spread was seen."""
    if estimate.value is None:
        return UNSCORED_TEXT
    error = f" ± {estimate.standard_error:.3f}" if estimate.standard_error else ""
    return f"{estimate.value:.3f}{error}"


def milliseconds(seconds: float | None) -> str:
    """Return seconds in milliseconds, three significant digits at least."""
    if seconds is None:
        return UNSCORED_TEXT
    value = 1000 * seconds
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def pluralize(number: int, noun: str) -> str:
    """Return "1 sample", "2,000 samples"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def escape_inline(text: str) -> str:
    """Return foreign text in one line, cut where it is long, with nothing in it that Markdown or HTML would act on."""
    line = " ".join(text.split())
    line = line if len(line) <= MAX_TEXT else line[: MAX_TEXT - 1] + "…"
    for character in "\\`*_[]|":
        line = line.replace(character, f"\\{character}")
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """Return a table: the first `text_columns` to the left, the others to the right. Cells are Markdown already."""
    rule = [*[":---"] * text_columns, *["---:"] * (len(columns) - text_columns)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (columns, rule, *rows))
