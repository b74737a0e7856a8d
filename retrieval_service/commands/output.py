"""Output of these commands: results to standard output, progress and problems to standard error."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console


def print_result(as_json: bool, sentence: str, **values: Any) -> None:
    """Print a result: a sentence for people, or its values as JSON."""
    sys.stdout.write((json.dumps(values, ensure_ascii=False, indent=2) if as_json else sentence) + "\n")


def stderr_console() -> Console:
    """Return the console for progress and problems."""
    return Console(stderr=True, highlight=False, markup=False)
