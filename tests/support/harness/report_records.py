"""Records for tests of reports: with images, adapters, wrong answers and hostile text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from infra.contract.composition import WeightedAdapter
from infra.contract.generation import Usage
from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.evaluation.records import Record, RetrievedAdapter, SampleTimings
from orchestrator.evaluation.spec import DatasetSpec, EvaluatedStrategy, EvaluationSpec
from tests.support.harness.evaluation_data import answered, failure, sample
from tests.support.harness.images import picture, png

HOSTILE = '</script><img src=x onerror="globalThis.broken=1"><b>$title ${x} \u2028 &lt;!--<script>globalThis.broken=2'
STRATEGIES = (EvaluatedStrategy(AnswerStrategy.SELECTION), EvaluatedStrategy(AnswerStrategy.MIXTURE))
SPEC = EvaluationSpec(
    (
        DatasetSpec("clock", "clock.jsonl", "clock", "app"),
        DatasetSpec("office", "office.jsonl", "office", "category"),
    ),
    STRATEGIES,
)


def many_records(folder: Path, questions: int) -> list[Record]:
    """Return the answers of two strategies to `questions`; every third answer of mixture is wrong."""
    screen = folder / "screen.png"
    screen.write_bytes(png(picture(60, 100)))
    records = []
    for strategy in STRATEGIES:
        for number in range(questions):
            dataset = "office" if number % 4 == 0 else "clock"
            asked = sample("Scroll up", episode=f"e{number:05}", dataset=dataset, strategy=strategy, adapter_id=dataset)
            asked = replace(asked, text=f"question {number}", images=(screen,))
            wrong = number % 3 == 0 and strategy.strategy is AnswerStrategy.MIXTURE
            records.append(full(answered(asked, "Scroll down" if wrong else "Scroll up")))
    return records


def strategy_records(strategy: EvaluatedStrategy, correct: list[bool]) -> list[Record]:
    """Return answers of one strategy, two steps per episode, each correct or wrong."""
    return [
        answered(
            sample("Scroll up", episode=str(index // 2), step=index % 2, step_count=2, strategy=strategy),
            "Scroll up" if is_correct else "Scroll down",
        )
        for index, is_correct in enumerate(correct)
    ]


def full(record: Record) -> Record:
    """Return the record with all measurements of a job."""
    return replace(
        record,
        matches=(RetrievedAdapter("clock", 0.9, 0.7), RetrievedAdapter("gmail", 0.4, 0.3)),
        applied=(WeightedAdapter("clock", 0.7), WeightedAdapter("gmail", 0.3)),
        usage=Usage(100, 40, 8),
        timings=SampleTimings(0.4, 0.05, 0.03, 0.01, 0.01, 0.1, 0.2),
    )


def hostile_records(folder: Path) -> list[Record]:
    """Return records whose texts would break out of the page if they were not escaped or wrapped."""
    asked = sample(HOSTILE, episode=HOSTILE)
    asked = replace(asked, text=HOSTILE + "w" * 3000, images=(folder / "gone.png",), adapter_id=HOSTILE)
    answer = replace(
        full(answered(asked, HOSTILE)), matches=(RetrievedAdapter(HOSTILE, 0.9, 1.0), RetrievedAdapter("x" * 500, 0, 0))
    )
    broken = failure(replace(sample("Scroll up", episode="failed"), adapter_id=HOSTILE), message=HOSTILE)
    return [answer, broken]
