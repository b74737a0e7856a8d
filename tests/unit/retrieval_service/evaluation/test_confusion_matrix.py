"""The drawing of a confusion matrix."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from PIL import Image

from infra.contract.errors import InvalidArgumentError
from retrieval_service.evaluation.confusion_matrix import draw_confusion_matrix
from retrieval_service.evaluation.outcomes import Outcome, compute_scores


def one(truth: str, rank: int | None, first: str, weight: float) -> Outcome:
    return Outcome(truth, rank, (first, "other"), (weight, 1 - weight))


OUTCOMES = [one("a", 1, "a", 0.95), one("a", 2, "b", 0.93), one("b", 4, "a", 0.55), one("c", None, "a", 0.51)]


def test_confusion_matrix_is_drawn(tmp_path: Path) -> None:
    found = compute_scores([*OUTCOMES, one("a&<b", 1, "a&<b", 0.5)])
    draw_confusion_matrix(found, tmp_path / "matrix.svg")
    words = [element.text for element in ET.parse(tmp_path / "matrix.svg").iter() if element.tag.endswith("text")]
    assert words.count("a&<b") == 2
    assert words.count("1") == 5
    draw_confusion_matrix(found, tmp_path / "matrix.png")
    with Image.open(tmp_path / "matrix.png") as picture:
        assert picture.width == picture.height
        assert (8, 48, 107) in [colour for _, colour in picture.getcolors(1 << 16) or []]
    for wrong in ("matrix.gif", "nowhere/matrix.svg"):
        with pytest.raises(InvalidArgumentError, match="cannot"):
            draw_confusion_matrix(found, tmp_path / wrong)
