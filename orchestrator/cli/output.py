"""Where words go: results to standard output, progress and errors to standard error."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from infra.contract.errors import ConfigurationError, InvalidArgumentError, LoraRetrieverError

FAILED, USAGE, INTERRUPTED = 1, 2, 130
PLAIN_WIDTH = 160
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def results() -> Console:
    """Return the console of results. What is no terminal gets no colours, and lines wide enough for scripts."""
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)


def progress() -> Console:
    """Return the console of progress and errors."""
    return Console(stderr=True, highlight=False, markup=False, width=None if sys.stderr.isatty() else PLAIN_WIDTH)


def print_json(value: object) -> None:
    """Write a value, dataclasses included, as one JSON document to standard output."""
    sys.stdout.write(json.dumps(value, default=_plain, ensure_ascii=False, indent=2) + "\n")
    sys.stdout.flush()


def print_text(text: str) -> None:
    """Write a text to standard output, at once and without a line end of its own.

    A terminal gets no control characters of it: a model's words must not move the cursor.
    """
    sys.stdout.write(_CONTROL.sub("�", text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def note(text: str) -> None:
    """Write one line to standard error."""
    progress().print(text, style="dim", soft_wrap=True)


def print_error(message: str, notes: list[str] | None = None) -> None:
    """Write an error, and what was noted beside it, to standard error."""
    beside = f" ({', '.join(notes)})" if notes else ""
    progress().print(Text.assemble(("error: ", "bold red"), message + beside), soft_wrap=True)


def exit_status(error: LoraRetrieverError) -> int:
    """Return 2 for what the caller asked wrongly, and 1 for what went wrong."""
    return USAGE if isinstance(error, ConfigurationError | InvalidArgumentError) else FAILED


def _plain(value: object) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    match value:
        case datetime():
            return value.isoformat()
        case Enum():
            return value.value
        case Path():
            return str(value)
        case bytes():
            return f"<{len(value)} bytes>"
        case _:
            raise TypeError(f"{type(value).__name__} has no JSON form")
