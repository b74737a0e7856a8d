"""Regular expressions from adapter configs, matched in linear time by RE2.

They are untrusted, and `re`, which PEFT uses, holds the interpreter lock until a match ends: one pattern with
exponential backtracking would stop the server. See docs/decisions/0040-peft-reads-configs-re2-matches-patterns.md.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import re2

_MAX_LENGTH = 8192
"""Characters. ms-swift and Unsloth write one expression with every kind of layer, about 500 characters."""
_MAX_PROGRAM_BYTES = 2**16
"""RE2's limit for a compiled pattern; a repeat such as (?:a?){1000} within another exceeds it."""
_READ_DIFFERENTLY = re.compile(r"\{,\d|\[\[:")
"""What `re` and RE2 accept with different meanings: x{,3} and [[:alpha:]]."""


class PatternError(ValueError):
    """Why a pattern is not matched. `valid` says that PEFT's `re` reads it, and only RE2 does not."""

    def __init__(self, message: str, *, valid: bool = False) -> None:
        super().__init__(message)
        self.valid = valid


def is_full_match(pattern: str, name: str) -> bool:
    """Return whether the whole of `name` matches, as in PEFT's `match_target_against_key`. Raises PatternError."""
    return _compiled(pattern).fullmatch(name) is not None


def is_suffix_match(pattern: str, name: str) -> bool:
    """Return whether `name`, or its end after a dot, matches, as in PEFT's `get_pattern_key`. Raises PatternError."""
    return _compiled(rf"(.*\.)?({pattern})$").match(name) is not None


def check_full(pattern: str) -> None:
    """Raise PatternError if `is_full_match` cannot match `pattern`."""
    _compiled(pattern)


def check_suffix(pattern: str) -> None:
    """Raise PatternError if `is_suffix_match` cannot match `pattern`."""
    _compiled(rf"(.*\.)?({pattern})$")


@lru_cache(2048)
def _compiled(pattern: str) -> Any:
    if len(pattern) > _MAX_LENGTH:
        raise PatternError(f"it has {len(pattern)} characters; the limit is {_MAX_LENGTH}")
    if _READ_DIFFERENTLY.search(pattern):
        raise PatternError("{,n} and [[:class:]] are read differently by RE2", valid=True)
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise PatternError(f"it is not a regular expression: {error}") from error
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MAX_PROGRAM_BYTES
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0] if error.args else error
        reason = reason.decode(errors="replace") if isinstance(reason, bytes) else reason
        raise PatternError(f"RE2 does not match it ({reason})", valid=True) from error
