"""Confusion counts of retrieval."""

from __future__ import annotations

from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.evaluation.metrics.retrieval import RankedAdapters, confusion
from orchestrator.evaluation.spec import EvaluatedStrategy

RIGHT, WRONG = "Scroll up", "Scroll down"
SELECTION = EvaluatedStrategy(AnswerStrategy.SELECTION)
MIXTURE = EvaluatedStrategy(AnswerStrategy.MIXTURE)


def test_confusion_counts_what_came_first() -> None:
    ranked = [
        RankedAdapters("a", "clock", ("clock", "mail")),
        RankedAdapters("b", "clock", ("mail",)),
        RankedAdapters("c", "clock", ("mail",)),
        RankedAdapters("d", "mail", ()),
    ]
    assert confusion(ranked) == {"clock": {"clock": 1, "mail": 2}, "mail": {"(none)": 1}}
