"""One sample through the pipeline: never an exception for what a sample can cause, always a record."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from infra.contract.errors import (
    DeadlineError,
    FailedPreconditionError,
    InternalError,
    LoraRetrieverError,
    OverloadedError,
    UnavailableError,
)
from infra.contract.prompt import ImagePart, Prompt
from infra.runtime.logs import get_logger
from orchestrator.answering.question import Answer, Question
from orchestrator.evaluation.data.image_files import read_image
from orchestrator.evaluation.planning import step_text
from orchestrator.evaluation.records import Record, RetrievedAdapter, Sample, SampleError, SampleTimings
from orchestrator.evaluation.spec import EvaluationSpec
from orchestrator.jobs import metrics as job_metrics

log = get_logger(__name__)

TRANSIENT = (OverloadedError, UnavailableError)
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
TIMEOUT_MARGIN_S = 5.0
EARLIER_STEP_FAILED = "EARLIER_STEP_FAILED"


class Answers(Protocol):
    """What answers questions: orchestrator.answering.pipeline.Pipeline."""

    async def answer(self, question: Question, timeout_s: float | None = None) -> Answer:
        """Return the answer to `question`."""


@dataclass(frozen=True)
class Patience:
    """Seconds one try may take, and seconds to go on trying while a service is full or unreachable."""

    timeout_s: float = 300.0
    total_s: float = 300.0


class InterruptedSampleError(Exception):
    """The sample was given up before it was answered, through no fault of its own."""


@dataclass(frozen=True)
class Answering:
    """Answers samples with a pipeline; their images are read below `roots` only."""

    pipeline: Answers
    roots: Sequence[Path]
    patience: Patience

    async def record(
        self, sample: Sample, spec: EvaluationSpec, stop: asyncio.Event, evaluation_id: str = ""
    ) -> Record:
        """Return what came of a sample of a job, its error included. Samples of one job share what they retrieve.

        A try that finds a service full or away is repeated with growing pauses while patience lasts; when `stop` is
        set in such a pause, InterruptedSampleError is raised.
        """
        start = time.monotonic()
        try:
            async with asyncio.timeout(self.patience.timeout_s):
                question = await asyncio.to_thread(ask, sample, spec, self.roots, evaluation_id)
            answer = await self._patiently(question, stop)
        except LoraRetrieverError as error:
            return failed(sample, error, time.monotonic() - start)
        except TimeoutError:
            slow = DeadlineError(f"its images were not read within {self.patience.timeout_s:g} s")
            return failed(sample, slow, time.monotonic() - start)
        except InterruptedSampleError:
            raise
        except Exception:
            log.exception("sample failed", key=sample.key)
            unforeseen = InternalError("the worker failed on this sample; its log has the reason under the key")
            return failed(sample, unforeseen, time.monotonic() - start)
        return _answered(sample, answer)

    async def _patiently(self, question: Question, stop: asyncio.Event) -> Answer:
        timeout_s = self.patience.timeout_s
        until = time.monotonic() + self.patience.total_s
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                async with asyncio.timeout(timeout_s + TIMEOUT_MARGIN_S):
                    return await self.pipeline.answer(question, timeout_s)
            except TimeoutError as error:
                raise DeadlineError(f"no answer within {timeout_s:g} s") from error
            except TRANSIENT as error:
                if time.monotonic() + pause_s > until:
                    raise
                job_metrics.samples_retried_total.labels(error.reason).inc()
                try:
                    await asyncio.wait_for(stop.wait(), random.uniform(pause_s / 2, pause_s))
                except TimeoutError:
                    pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                else:
                    raise InterruptedSampleError from error


def ask(sample: Sample, spec: EvaluationSpec, roots: Sequence[Path], evaluation_id: str = "") -> Question:
    """Return the question that a sample of a job puts, its images read.

    Raises NotFoundError or InvalidArgumentError for an image that cannot be read (see read_image),
    FailedPreconditionError for one that changed since the job was planned.
    """
    strategy = sample.strategy
    options = replace(spec.retrieval, kind=sample.kind) if sample.kind else spec.retrieval
    if strategy.exclude_own_adapter and sample.adapter_id and sample.adapter_id not in options.exclude:
        options = replace(options, exclude=(*options.exclude, sample.adapter_id))
    return Question(
        prompt=Prompt.of(sample.text, [ImagePart(content) for content in _read_images(sample, roots)]),
        strategy=strategy.strategy,
        retrieval=options,
        fusion_method=strategy.fusion_method,
        decoding=spec.decoding,
        oracle=sample.adapter_id or "",
        seed=_seed_of(sample, spec),
        shared_by=evaluation_id,
    )


def failed(sample: Sample, error: LoraRetrieverError, total_s: float | None = None) -> Record:
    """Return the record of a sample that has no answer."""
    timings = SampleTimings(total_s) if total_s is not None else None
    return Record(sample, error=SampleError(error.reason, error.message), timings=timings)


def not_asked(sample: Sample, earlier: Record) -> Record:
    """Return the record of a step that needed the answer to an earlier one, which there is none of."""
    reason = earlier.error.reason if earlier.error is not None else "UNKNOWN"
    if reason == EARLIER_STEP_FAILED and earlier.error is not None:
        return Record(sample, error=earlier.error)
    message = f"not asked: step {earlier.sample.step + 1} of this episode has no answer ({reason})"
    return Record(sample, error=SampleError(EARLIER_STEP_FAILED, message))


def with_history(sample: Sample, earlier: Sequence[Record]) -> Sample:
    """Return a step as it is asked in the episode protocol: with the model's own answers to the steps before it."""
    return replace(sample, text=step_text(sample.text, [said for record in earlier if (said := _said(record))]))


def _said(record: Record) -> str:
    return (record.answer or "").strip()


def _seed_of(sample: Sample, spec: EvaluationSpec) -> str:
    """Return what draws a sample's adapters: the same in and out of domain, another for a strategy of another name."""
    question = sample.key.partition("/")[2]
    return f"{spec.seed}\n{sample.strategy.name}\n{question}"


def _read_images(sample: Sample, roots: Sequence[Path]) -> list[bytes]:
    allowed = [root.resolve() for root in roots]
    contents = [read_image(path, allowed) for path in sample.images]
    for path, content, planned in zip(sample.images, contents, sample.image_sha256, strict=False):
        if planned and hashlib.sha256(content).hexdigest() != planned:
            raise FailedPreconditionError(
                f"image {path} has changed since the job was planned; bring it back, or start the job anew",
                image=str(path),
            )
    return contents


def _answered(sample: Sample, answer: Answer) -> Record:
    generation = answer.generation
    matches = tuple(
        RetrievedAdapter(match.adapter.adapter_id, match.similarity, match.weight, match.adapter.revision)
        for match in answer.selection.matches
    )
    retrieves = sample.strategy.strategy.retrieves
    measured = retrieves and not answer.retrieval_shared
    retrieval = answer.retrieval_timings if measured else None
    return Record(
        sample,
        answer=generation.text,
        matches=matches if retrieves else None,
        applied=generation.applied,
        finish_reason=generation.finish_reason,
        usage=generation.usage,
        timings=SampleTimings(
            total_s=answer.total_s,
            retrieval_s=answer.retrieval_s if measured else None,
            embed_s=retrieval.embed_s if retrieval is not None else None,
            search_s=retrieval.search_s if retrieval is not None else None,
            queue_s=generation.timings.queue_s,
            prefill_s=generation.timings.prefill_s,
            decode_s=generation.timings.decode_s,
        ),
        catalogue_revision=answer.catalogue_revision,
        catalogue_stale=answer.stale,
    )
