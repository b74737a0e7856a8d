"""What is asked (a sample) and what came of it (a record), as one JSON object a line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from infra.contract.composition import WeightedAdapter
from infra.contract.errors import InvalidArgumentError, LoraRetrieverError
from infra.contract.generation import FinishReason, Usage
from orchestrator.evaluation.spec import EvaluatedStrategy, PromptProtocol


@dataclass(frozen=True)
class Sample:
    """One question to the system and its true answer.

    `key` is unique in a job and the same in every run of it. `step` counts from 0 (always 0 in the sequence protocol),
    `step_count` is the number of true actions of the whole episode. `cluster` is the same for samples of one episode in
    any dataset and strategy. `adapter_id` is the adapter trained for the row, None where not known. `text` is what is
    asked; in the episode protocol a plan holds the instruction alone, and a record what was really asked.
    `image_sha256` is what the images must hold ("" any), empty where nobody looked.
    """

    key: str
    dataset: str
    kind: str
    episode_id: str
    cluster: str
    protocol: PromptProtocol
    step: int
    step_count: int
    strategy: EvaluatedStrategy
    images: tuple[Path, ...]
    text: str
    truth: str
    adapter_id: str | None = None
    image_sha256: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.step < self.step_count:
            raise InvalidArgumentError("step", f"sample {self.key!r}: step {self.step} of {self.step_count} steps")

    def to_json(self) -> dict[str, Any]:
        """Return the sample as JSON values."""
        dumped: dict[str, Any] = _SAMPLE.dump_python(self, mode="json")
        return dumped

    @classmethod
    def from_json(cls, data: Any) -> Sample:
        """Return the sample that `to_json` described."""
        return _SAMPLE.validate_python(data)


@dataclass(frozen=True)
class RetrievedAdapter:
    """One retrieved adapter: cosine similarity in [-1, 1], and its weight in the composition."""

    adapter_id: str
    similarity: float
    weight: float
    revision: str = ""


@dataclass(frozen=True)
class SampleTimings:
    """Seconds, of one answer: embedding its prompt, searching the catalogue, waiting for a place in the batch, prefill,
    decoding, and all from end to end.

    `retrieval_s` is the whole call of the retrieval service, embedding and search in it. None: not measured, as these
    where nothing is retrieved, or where another question had retrieved it already.
    """

    total_s: float
    retrieval_s: float | None = None
    embed_s: float | None = None
    search_s: float | None = None
    queue_s: float | None = None
    prefill_s: float | None = None
    decode_s: float | None = None


@dataclass(frozen=True)
class SampleError:
    """Why a sample has no answer: `reason` as in infra.contract.errors, and a sentence."""

    reason: str
    message: str


@dataclass(frozen=True)
class Record:
    """What came of a sample: an answer (may be empty) or an error, never both.

    `matches` is None where nothing was asked of the retrieval service, and empty where it found nothing.
    `catalogue_stale`: the catalogue could not be reached, and the last known one was searched. `dataset_changed`: when
    the sample was asked, its dataset's file no longer held what the job had planned.
    """

    sample: Sample
    answer: str | None = None
    error: SampleError | None = None
    matches: tuple[RetrievedAdapter, ...] | None = None
    applied: tuple[WeightedAdapter, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    timings: SampleTimings | None = None
    catalogue_revision: str = ""
    catalogue_stale: bool = False
    dataset_changed: bool = False

    def __post_init__(self) -> None:
        if (self.answer is None) == (self.error is None):
            raise InvalidArgumentError("answer", f"record {self.sample.key!r} needs an answer or an error, not both")

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        dumped: dict[str, Any] = _RECORD.dump_python(self, mode="json")
        return dumped

    @classmethod
    def from_json(cls, data: Any) -> Record:
        """Return the record that `to_json` described; fields it does not know are ignored."""
        return _RECORD.validate_python(data)


_SAMPLE = TypeAdapter(Sample)
_RECORD = TypeAdapter(Record)


def read_records(file: Path) -> list[Record]:
    """Return the records of a job's records.jsonl.

    Raises InvalidArgumentError naming file, line and problem of the first line that is no record.
    """
    records = []
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                if line.strip():
                    records.append(Record.from_json(json.loads(line)))
            except (ValueError, LoraRetrieverError) as error:
                raise InvalidArgumentError("", f"{file}:{number}: not a record: {error}") from error
    return records
