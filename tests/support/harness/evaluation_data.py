"""Datasets on disk, samples and records."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.evaluation.records import Record, RetrievedAdapter, Sample, SampleError, SampleTimings
from orchestrator.evaluation.spec import EvaluatedStrategy, PromptProtocol

MIXTURE = EvaluatedStrategy(AnswerStrategy.MIXTURE)


def row(episode_id: str, instruction: str, actions: Sequence[str], images: Sequence[str]) -> dict[str, Any]:
    """Return one row of a dataset."""
    return {
        "images": list(images),
        "query": "<image>\n" * len(images) + instruction,
        "response": "\n".join(actions),
        "episode_id": episode_id,
    }


def write_dataset(folder: Path, name: str, rows: Sequence[dict[str, Any]]) -> Path:
    """Write `<name>.jsonl` and an empty file for each of its images; return the path."""
    folder.mkdir(parents=True, exist_ok=True)
    for image in (image for fields in rows for image in fields["images"]):
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        (folder / image).touch()
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(fields) + "\n" for fields in rows), encoding="utf-8")
    return file


def sample(
    truth: str,
    *,
    episode: str = "e1",
    step: int = 0,
    step_count: int = 1,
    dataset: str = "clock",
    kind: str = "app",
    strategy: EvaluatedStrategy = MIXTURE,
    protocol: PromptProtocol = PromptProtocol.STEP,
    adapter_id: str | None = "clock",
    cluster: str | None = None,
) -> Sample:
    """Return a sample with arbitrary text and image."""
    return Sample(
        key=f"{strategy.label}/{dataset}/{episode}/{step}",
        dataset=dataset,
        kind=kind,
        episode_id=episode,
        cluster=cluster or f"{dataset}/{episode}",
        protocol=protocol,
        step=step,
        step_count=step_count,
        strategy=strategy,
        images=(Path("screen.png"),),
        text="do it",
        truth=truth,
        adapter_id=adapter_id,
    )


def answered(question: Sample, answer: str, retrieved: Sequence[str] | None = None, total_s: float = 0.2) -> Record:
    """Return the record of an answer made with the `retrieved` adapters."""
    matches = None if retrieved is None else tuple(RetrievedAdapter(name, 0.5, 0.25) for name in retrieved)
    return Record(
        question, answer=answer, matches=matches, timings=SampleTimings(total_s=total_s, decode_s=total_s / 2)
    )


def failure(question: Sample, reason: str = "UNAVAILABLE", message: str = "connection refused") -> Record:
    """Return the record of a sample without an answer."""
    return Record(question, error=SampleError(reason, message))


def write_records(file: Path, records: Iterable[Record]) -> None:
    """Write records as a job does, without scores."""
    file.write_text("".join(json.dumps(record.to_json()) + "\n" for record in records), encoding="utf-8")
