"""Answers one sample. An error that the sample causes becomes its record and is not raised."""

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
from infra.contract.prompt import ImagePart
from infra.runtime.logs import get_logger
from orchestrator.answering.question import Answer, Question
from orchestrator.evaluation.data.image_files import read_image
from orchestrator.evaluation.records import Record, RetrievedAdapter, Sample, SampleError, SampleTimings
from orchestrator.evaluation.sample_plan import step_text
from orchestrator.evaluation.spec import EvaluationSpec
from orchestrator.jobs import metrics as job_metrics

log = get_logger(__name__)

_TRANSIENT = (OverloadedError, UnavailableError)

# A full service is tried again after 0.1 s, doubled each time, up to 5 s: short against an answer, long against a call
# that is refused. The pauses are random, so that the samples of many workers do not come back together.
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
_TIMEOUT_MARGIN_S = 5.0  # For an answerer that does not keep its deadline.
_EARLIER_STEP_FAILED = "EARLIER_STEP_FAILED"


class Answerer(Protocol):
    """Answers questions: orchestrator.answering.pipeline.Pipeline."""

    async def answer(self, question: Question, timeout_s: float | None = None) -> Answer:
        """Return the answer to a question."""


@dataclass(frozen=True)
class RetryLimits:
    """Longest time of one try, and for how long tries are repeated while a service is full or unreachable."""

    timeout_s: float = 300.0
    patience_s: float = 300.0


class InterruptedSampleError(Exception):
    """The worker stopped before the sample was answered; the sample is not to blame."""


@dataclass(frozen=True)
class SampleRunner:
    """Answers samples with an answerer. Images are read below `roots` only."""

    answerer: Answerer
    roots: Sequence[Path]
    limits: RetryLimits

    async def run(self, sample: Sample, spec: EvaluationSpec, stop: asyncio.Event, evaluation_id: str = "") -> Record:
        """Return the record of a sample of a job, with its answer or its error. Samples of a job share retrievals.

        Raises:
            InterruptedSampleError: `stop` was set in a pause between two tries.
        """
        start = time.monotonic()
        try:
            async with asyncio.timeout(self.limits.timeout_s):
                question = await asyncio.to_thread(to_question, sample, spec, self.roots, evaluation_id)
            answer = await self._answer_with_retries(question, stop)
        except LoraRetrieverError as error:
            return failed(sample, error, time.monotonic() - start)
        except TimeoutError:
            slow = DeadlineError(f"its images were not read within {self.limits.timeout_s:g} s")
            return failed(sample, slow, time.monotonic() - start)
        except InterruptedSampleError:
            raise
        except Exception:
            log.exception("sample_failed", evaluation_id=evaluation_id, key=sample.key)
            unforeseen = InternalError("the worker failed on this sample; its log has the reason under the key")
            return failed(sample, unforeseen, time.monotonic() - start)
        return _answered(sample, answer)

    async def _answer_with_retries(self, question: Question, stop: asyncio.Event) -> Answer:
        timeout_s = self.limits.timeout_s
        until = time.monotonic() + self.limits.patience_s
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                async with asyncio.timeout(timeout_s + _TIMEOUT_MARGIN_S):
                    return await self.answerer.answer(question, timeout_s)
            except TimeoutError as error:
                raise DeadlineError(f"no answer within {timeout_s:g} s") from error
            except _TRANSIENT as error:
                if time.monotonic() + pause_s > until:
                    raise
                job_metrics.samples_retried_total.labels(error.reason).inc()
                if await _is_set_within(stop, random.uniform(pause_s / 2, pause_s)):
                    raise InterruptedSampleError from error
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def to_question(sample: Sample, spec: EvaluationSpec, roots: Sequence[Path], evaluation_id: str = "") -> Question:
    """Read the images of a sample and return its question.

    Raises:
        NotFoundError: an image does not exist.
        InvalidArgumentError: an image is outside of the roots or too large.
        FailedPreconditionError: an image changed since the job was planned.
    """
    strategy = sample.strategy
    options = replace(spec.retrieval, kind=sample.kind) if sample.kind else spec.retrieval
    if strategy.exclude_own_adapter and sample.adapter_id and sample.adapter_id not in options.exclude:
        options = replace(options, exclude=(*options.exclude, sample.adapter_id))
    return Question(
        prompt=sample.prompt([ImagePart(content) for content in _read_images(sample, roots)]),
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
    """Return the record of a step whose earlier step has no answer to be asked with."""
    reason = earlier.error.reason if earlier.error is not None else "UNKNOWN"
    if reason == _EARLIER_STEP_FAILED and earlier.error is not None:
        return Record(sample, error=earlier.error)
    message = f"not asked: step {earlier.sample.step + 1} of this episode has no answer ({reason})"
    return Record(sample, error=SampleError(_EARLIER_STEP_FAILED, message))


def with_history(sample: Sample, earlier: Sequence[Record]) -> Sample:
    """Return a step as the episode protocol asks it: with the model's own answers to the steps before it."""
    answers = [(record.answer or "").strip() for record in earlier]
    return replace(sample, text=step_text(sample.text, [answer for answer in answers if answer]))


async def _is_set_within(event: asyncio.Event, timeout_s: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), timeout_s)
    except TimeoutError:
        return False
    return True


def _seed_of(sample: Sample, spec: EvaluationSpec) -> str:
    """Return the seed of a sample's random adapters: the same in and out of domain, different by strategy name."""
    question = sample.key.partition("/")[2]
    return f"{spec.seed}\n{sample.strategy.name}\n{question}"


def _read_images(sample: Sample, roots: Sequence[Path]) -> list[bytes]:
    allowed = [root.resolve() for root in roots]
    contents = [read_image(path, allowed) for path in sample.images]
    for path, content, planned in zip(sample.images, contents, sample.image_sha256, strict=False):
        if planned and hashlib.sha256(content).hexdigest() != planned:
            raise FailedPreconditionError(
                f"image {path} has changed since the job was planned; restore it, or create the job again",
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
        fusion_method=generation.fusion_method,
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
