"""Files of labelled prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.contract.adapter import Adapter
from infra.contract.errors import InvalidArgumentError
from infra.contract.retrieval import Match, Selection
from retrieval_service.evaluation.labelled_prompts import outcome_of, read_labelled_prompts
from retrieval_service.evaluation.outcomes import Outcome
from tests.support.harness.images import png_part


def test_labelled_rows_are_read_and_invalid_ones_reported_by_line(tmp_path: Path) -> None:
    (tmp_path / "screen.png").write_bytes(png_part(30, 30).data)
    rows = [
        {"query": "<image>Buy shoes", "images": ["screen.png", "gone.png"], "adapter": "shop"},
        {"query": "no adapter"},
        {"query": "gone", "images": ["gone.png"], "adapter": "shop"},
        {"query": "", "adapter": "shop"},
        {"query": "x", "adapter": "../shop"},
        [],
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\nnot json\n", encoding="utf-8")
    found = read_labelled_prompts([str(file)], max_images=1)
    assert [(row.truth, row.prompt.user_text, len(row.prompt.images)) for row in found.rows] == [
        ("shop", "Buy shoes", 1)
    ]
    assert [problem.split(": ")[0] for problem in found.problems] == [f"{file}:{line}" for line in range(2, 8)]
    assert len(read_labelled_prompts([f"mail={file}"], max_images=0).rows) == 4
    with pytest.raises(InvalidArgumentError, match="cannot be read"):
        read_labelled_prompts([str(tmp_path / "none.jsonl")], 2)
    file.write_text("[]\n", encoding="utf-8")
    with pytest.raises(InvalidArgumentError, match=r"no row .* could be read; the first"):
        read_labelled_prompts([str(file)], 2)


def test_service_response_becomes_outcome() -> None:
    matches = tuple(Match(Adapter(name, "base", ""), 0.5, 0.25) for name in "abcd")
    best = Selection(tuple(Match(Adapter(name, "base", ""), 0.5, 0.5) for name in "ab"))
    assert outcome_of("c", Selection(matches), best) == Outcome("c", 3, ("a", "b"), (0.5, 0.5))
    assert outcome_of("z", Selection(matches), best).rank is None
    assert outcome_of("z", Selection(), Selection()) == Outcome("z", None, (), ())
