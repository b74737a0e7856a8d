"""Output of commands: results to standard output, progress and errors to standard error."""

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
#: Line width where the output is not a terminal: tables in logs and scripts are not folded.
_PLAIN_WIDTH = 160
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def results() -> Console:
    """Return the console for results. Without a terminal it has no colours, and lines wide enough for scripts."""
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else _PLAIN_WIDTH)


def progress() -> Console:
    """Return the console for progress and errors."""
    return Console(stderr=True, highlight=False, markup=False, width=None if sys.stderr.isatty() else _PLAIN_WIDTH)


def print_json(value: object) -> None:
    """Write a value, dataclasses included, as one JSON document to standard output."""
    sys.stdout.write(json.dumps(value, default=_plain, ensure_ascii=False, indent=2) + "\n")
    sys.stdout.flush()


def print_text(text: str) -> None:
    """Write a text to standard output and flush it, without adding a newline.

    On a terminal control characters are replaced: a model's answer must not move the cursor.
    """
    sys.stdout.write(_CONTROL_CHARACTERS.sub("�", text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def note(text: str) -> None:
    """Write one line to standard error."""
    progress().print(text, style="dim", soft_wrap=True)


def print_error(message: str, notes: list[str] | None = None) -> None:
    """Write an error and the notes attached to it to standard error."""
    suffix = f" ({', '.join(notes)})" if notes else ""
    progress().print(Text.assemble(("error: ", "bold red"), message + suffix), soft_wrap=True)


def exit_status(error: LoraRetrieverError) -> int:
    """Return 2 for an error in how the command was called, and 1 for any other."""
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
