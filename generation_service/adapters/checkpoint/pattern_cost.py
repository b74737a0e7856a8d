r"""An upper bound of the time that a regular expression takes on a module name, from the expression alone.

`re` holds the interpreter lock until a match ends, so a pattern with exponential backtracking, such as `(\w+\.?)+!`,
would stop the server. The bound counts the ways in which backtracking may go through the parts, as if every part could
match anywhere. Why not a time limit: docs/decisions/0012-patterns-are-bounded-by-counting.md.

It parses patterns with `re._parser`, which is private to CPython; the tests run on every supported version.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from re import _constants as ops  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

_NAME = 64
"""Assumed length of a module name: a repeat without a bound matches at most so many characters."""
_BEYOND = 2**64
"""Where counting stops: far above every limit, and small enough for fast integers."""
_CHARACTERS = {ops.LITERAL, ops.NOT_LITERAL, ops.ANY, ops.IN, ops.AT, ops.GROUPREF, ops.FAILURE}
_REPEATS = {ops.MAX_REPEAT, ops.MIN_REPEAT, ops.POSSESSIVE_REPEAT}


@dataclass(frozen=True)
class _Bound:
    """Upper bounds: `ways` in which a part can match, and the `steps` to try them all."""

    ways: int
    steps: int


def match_steps(pattern: str) -> int:
    """Return an upper bound of the steps to match a module name. Raises re.error or OverflowError."""
    return _sequence(parser.parse(pattern)).steps


def _sequence(parts: Iterable[tuple[Any, Any]]) -> _Bound:
    ways = steps = 1
    for kind, value in parts:
        part = _part(kind, value)
        steps = min(steps + ways * part.steps, _BEYOND)
        ways = min(ways * part.ways, _BEYOND)
    return _Bound(ways, steps)


def _part(kind: Any, value: Any) -> _Bound:
    if kind in _CHARACTERS:
        bound = _Bound(1, 1)
    elif kind in _REPEATS:
        least, most, body = value
        bound = _repeated(_sequence(body), min(least, _NAME), min(most, _NAME))
    elif kind is ops.BRANCH:
        bound = _either(value[1])
    elif kind is ops.SUBPATTERN:
        bound = _sequence(value[-1])
    elif kind is ops.ATOMIC_GROUP:
        bound = _once(value)
    elif kind in (ops.ASSERT, ops.ASSERT_NOT):
        bound = _once(value[1])
    elif kind is ops.GROUPREF_EXISTS:
        bound = _either([branch for branch in value[1:] if branch is not None])
    else:
        bound = _Bound(_BEYOND, _BEYOND)
    return bound


def _once(body: Iterable[tuple[Any, Any]]) -> _Bound:
    """Return the bound of a part that is not backtracked into once it has matched."""
    return _Bound(1, _sequence(body).steps)


def _either(branches: Iterable[Iterable[tuple[Any, Any]]]) -> _Bound:
    bounds = [_sequence(branch) for branch in branches]
    return _Bound(sum(bound.ways for bound in bounds) + 1, sum(bound.steps for bound in bounds) + 1)


def _repeated(body: _Bound, least: int, most: int) -> _Bound:
    ways = sum(body.ways**count for count in range(least, most + 1))
    tried = sum(body.ways**count for count in range(most + 1))
    return _Bound(min(ways, _BEYOND), min(tried * body.steps, _BEYOND))
