"""Rows of a file: one on each line, or the items of one JSON array."""

from __future__ import annotations

import json

import pytest

from orchestrator.evaluation.data.json_rows import json_rows

ROWS = [{"a": 1}, {"a": "zwei\u2028"}, {"a": [3]}]


def rows_of(content: bytes) -> list[tuple[int, object, str]]:
    return [(row.line, row.value, row.problem) for row in json_rows(content.splitlines(keepends=True))]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("\n".join(map(json.dumps, ROWS)), [1, 2, 3]),
        ("\n\n".join(map(json.dumps, ROWS)) + "\n \n", [1, 3, 5]),
        ("\r\n".join(map(json.dumps, ROWS)), [1, 2, 3]),
        (json.dumps(ROWS), [1, 1, 1]),
        (json.dumps(ROWS, indent=1), [2, 5, 8]),
        ("\n" + json.dumps(ROWS, indent=1, ensure_ascii=False) + "\n\n", [3, 6, 9]),
        ("[" + ",\n".join(map(json.dumps, ROWS)) + "]", [1, 2, 3]),
    ],
)
def test_lines_and_arrays_hold_the_same_rows(mark: bytes, text: str, lines: list[int]) -> None:
    expected = [(line, row, "") for line, row in zip(lines, ROWS, strict=True)]
    assert rows_of(mark + text.encode()) == expected


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        (b'[{"a": 1},\n{"a": 2', 2, "not JSON: Expecting ',' delimiter"),
        (b'[{"a": 1}\n{"a": 2}]', 2, "not JSON: Expecting ',' delimiter"),
        (b'[{"a": 1}]\nmore', 2, "not JSON"),
        (b'[{"a": 1},\n {"a": "\xd6"}]', 2, "not UTF-8"),
        (b'{\n "a": 1\n}', 1, "a file has one row on each line, or is one JSON array"),
    ],
)
def test_broken_file_is_reported_with_its_line(content: bytes, line: int, problem: str) -> None:
    (at, _, found), *_ = [row for row in rows_of(content) if row[2]]
    assert at == line
    assert problem in found


def test_items_before_the_break_are_read() -> None:
    assert rows_of(b'[{"a": 1},\n{"a": 2},\n{"a"')[:2] == [(1, {"a": 1}, ""), (2, {"a": 2}, "")]


def test_empty_file_and_empty_array_have_no_rows() -> None:
    assert rows_of(b"") == rows_of(b"\n \n") == rows_of(b"[]") == rows_of(b"[\n]\n") == []


def test_line_that_is_a_list_does_not_hide_the_others() -> None:
    assert [value for _, value, _ in rows_of(b'[1, 2]\n{"a": 1}\n')] == [[1, 2], {"a": 1}]
