"""The lines of a dataset's file -> JSON values: one row on each line, or the items of one JSON array."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

_SPACE = re.compile(r"\s*")
_TOO_LARGE = "JSON is nested too deeply or has a number that is too long"
_SHAPE = "a file has one row on each line, or is one JSON array"


@dataclass(frozen=True)
class JsonRow:
    """A row: the line it starts on, from 1, and its JSON value, or the problem with it."""

    line: int
    value: Any
    problem: str = ""


def json_rows(lines: Iterable[bytes]) -> Iterator[JsonRow]:
    """Yield the rows of a file. Blank lines and a byte order mark are skipped."""
    numbered = _numbered(lines)
    for number, line in numbered:
        if line.lstrip().startswith(b"["):
            yield from _file_in_brackets(number, [line, *(rest for _, rest in numbered)])
            return
        if line.strip():
            yield _row(number, line)
            break
    for number, line in numbered:
        if line.strip():
            yield _row(number, line)


def _numbered(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(lines, start=1):
        yield number, (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).removesuffix(b"\n")


def _row(number: int, line: bytes) -> JsonRow:
    try:
        return JsonRow(number, json.loads(line.decode("utf-8")))
    except UnicodeDecodeError as error:
        problem = f"not UTF-8: byte {error.start + 1} of the line"
    except json.JSONDecodeError as error:
        problem = f"not JSON: {error.msg} at column {error.colno}; {_SHAPE}"
    except (RecursionError, ValueError):
        problem = _TOO_LARGE
    return JsonRow(number, None, problem)


def _file_in_brackets(number: int, lines: list[bytes]) -> Iterator[JsonRow]:
    """Yield the rows of a file whose first row starts with a bracket: an array, or a line that is no row."""
    first = _row(number, lines[0])
    if any(line.strip() for line in lines[1:]) and isinstance(first.value, list):  # Lines follow a whole array.
        yield from (_row(at, line) for at, line in enumerate(lines, start=number) if line.strip())
        return
    try:
        yield from _items(number, b"\n".join(lines).decode("utf-8"))
    except UnicodeDecodeError:
        bad = next(at for at, line in enumerate(lines, start=number) if _row(at, line).problem.startswith("not UTF-8"))
        yield JsonRow(bad, None, "not UTF-8")


def _items(number: int, text: str) -> Iterator[JsonRow]:
    """Yield the items of the JSON array `text`, which starts on line `number`; the last may be a problem."""
    decoder = json.JSONDecoder()
    start = position = _after_space(text, text.index("[") + 1)
    line = number + text.count("\n", 0, start)
    try:
        while text[position : position + 1] != "]":
            value, end = decoder.raw_decode(text, position)
            line, start = line + text.count("\n", start, position), position
            yield JsonRow(line, value)
            position = _after_space(text, end)
            if text[position : position + 1] not in (",", "]"):
                raise json.JSONDecodeError("Expecting ',' delimiter", text, position)
            position = _after_space(text, position + (text[position] == ","))
        if text[position + 1 :].strip():
            raise json.JSONDecodeError("more follows after the array", text, position + 1)
    except json.JSONDecodeError as error:
        yield JsonRow(number + error.lineno - 1, None, f"not JSON: {error.msg} at column {error.colno}; {_SHAPE}")
    except (RecursionError, ValueError):
        yield JsonRow(line, None, _TOO_LARGE)


def _after_space(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    return found.end() if found else position
