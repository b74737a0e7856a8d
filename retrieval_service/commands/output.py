"""Where the words of these commands go: results to standard output, progress to standard error."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console


def say(as_json: bool, sentence: str, **values: Any) -> None:
    """Print a result: a sentence for people, or its values as JSON."""
    sys.stdout.write((json.dumps(values, ensure_ascii=False, indent=2) if as_json else sentence) + "\n")


def errors() -> Console:
    """Return the console of progress and errors."""
    return Console(stderr=True, highlight=False, markup=False)
