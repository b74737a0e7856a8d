"""Samples (one question each) and records (a sample with its result), one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from infra.contract.composition import FusionMethod, WeightedAdapter
from infra.contract.errors import InvalidArgumentError, LoraRetrieverError
from infra.contract.generation import FinishReason, Usage
from infra.contract.prompt import ImagePart, Message, Prompt, Role, TextPart
from orchestrator.evaluation.spec import EvaluatedStrategy, PromptProtocol


@dataclass(frozen=True)
class Sample:
    """One question to the system and its true answer.

    Attributes:
        key: unique in a job and the same in every run of it.
        dataset: name of the dataset.
        kind: the dataset's kind; empty: none.
        episode_id: the row's id, unique in its dataset.
        cluster: the same for all samples of one episode, in every dataset and strategy.
        protocol: how the episode became samples.
        step: index of the step from 0; always 0 in the sequence protocol.
        step_count: number of true actions of the whole episode.
        strategy: how the sample is answered.
        images: the screens, in order.
        text: the prompt's text. In the episode protocol a planned sample holds the instruction only; its record
            holds the text that was sent.
        truth: the true answer.
        adapter_id: the adapter trained for the row; None: not known.
        system: the prompt's system message; empty: none.
        image_sha256: expected SHA-256 of each image ("": any content); empty: not recorded.
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
    system: str = ""

    def prompt(self, images: Sequence[ImagePart]) -> Prompt:
        """Return the prompt with the given content of `images`."""
        question = Prompt.of(self.text, images)
        if not self.system:
            return question
        return Prompt((Message(Role.SYSTEM, (TextPart(self.system),)), *question.messages))

    def __post_init__(self) -> None:
        if not 0 <= self.step < self.step_count:
            raise InvalidArgumentError(
                "step", f"sample {self.key!r}: step {self.step} is not in [0, {self.step_count})"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the sample as JSON values."""
        dumped: dict[str, Any] = _SAMPLE.dump_python(self, mode="json")
        return dumped

    @classmethod
    def from_json(cls, data: Any) -> Sample:
        """Parse the output of `to_json`."""
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
    """Seconds of each phase of one answer; None: not measured.

    The retrieval phases are None where the strategy does not retrieve, or where the result of another sample's
    retrieval was reused.

    Attributes:
        total_s: end to end.
        retrieval_s: the whole call of the retrieval service, which includes `embed_s` and `search_s`.
        embed_s: embedding the prompt.
        search_s: searching the catalogue.
        queue_s: waiting for a slot in the batch.
        prefill_s: prefill.
        decode_s: decoding.
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
    """Why a sample has no answer: `reason` is an error reason of infra.contract.errors, `message` a sentence."""

    reason: str
    message: str


@dataclass(frozen=True)
class Record:
    """The result of a sample: an answer (possibly empty) or an error, never both.

    Attributes:
        sample: the question.
        answer: the model's answer; None: an error.
        error: why there is no answer.
        matches: retrieved adapters; None: retrieval was not called; empty: nothing was similar enough.
        applied: adapters that composed the answer, with their weights.
        fusion_method: how they were fused; None if they were not.
        finish_reason: why generation stopped.
        usage: token counts.
        timings: seconds of each phase.
        catalogue_revision: revision of the catalogue that was searched.
        catalogue_stale: the catalogue was unreachable and its last known state was searched.
        dataset_changed: the dataset's file no longer matched the job's SHA-256 when the sample ran.
    """

    sample: Sample
    answer: str | None = None
    error: SampleError | None = None
    matches: tuple[RetrievedAdapter, ...] | None = None
    applied: tuple[WeightedAdapter, ...] = ()
    fusion_method: FusionMethod | None = None
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    timings: SampleTimings | None = None
    catalogue_revision: str = ""
    catalogue_stale: bool = False
    dataset_changed: bool = False

    def __post_init__(self) -> None:
        if (self.answer is None) == (self.error is None):
            raise InvalidArgumentError("answer", f"record {self.sample.key!r} must have either an answer or an error")

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        dumped: dict[str, Any] = _RECORD.dump_python(self, mode="json")
        return dumped

    @classmethod
    def from_json(cls, data: Any) -> Record:
        """Parse the output of `to_json`; unknown fields are ignored."""
        return _RECORD.validate_python(data)


_SAMPLE = TypeAdapter(Sample)
_RECORD = TypeAdapter(Record)


def read_records(file: Path) -> list[Record]:
    """Return the records of a job's records.jsonl.

    Raises InvalidArgumentError with file, line and problem of the first line that is not a record.
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
