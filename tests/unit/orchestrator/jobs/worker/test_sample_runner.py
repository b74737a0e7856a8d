"""A sample: its question, the tries to answer it, its record."""

from __future__ import annotations

import asyncio
import hashlib
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from infra.contract.composition import FusionMethod, WeightedAdapter
from infra.contract.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
)
from infra.contract.generation import Decoding, FinishReason, Generation, Timings, Usage
from infra.contract.prompt import ImagePart
from infra.contract.retrieval import RetrievalOptions, Selection
from orchestrator.answering.question import Answer, Question
from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.evaluation.data.image_files import MAX_IMAGE_BYTES, read_image
from orchestrator.evaluation.records import Sample
from orchestrator.evaluation.spec import DatasetSpec, EvaluatedStrategy, EvaluationSpec, PromptProtocol
from orchestrator.jobs.worker.sample_runner import InterruptedSampleError, RetryLimits, SampleRunner, to_question

SPEC = EvaluationSpec((DatasetSpec("gmail", "gmail.jsonl"),), (EvaluatedStrategy(AnswerStrategy.MIXTURE),))
GENERATION = Generation(
    "Wait for response", FinishReason.STOP, Usage(3, 1, 2), Timings(0.1, 0.2, 0.3), (WeightedAdapter("gmail", 1.0),)
)


@dataclass
class StandInPipeline:
    failures: list[Exception] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    retrieval_shared: bool = False

    async def answer(self, question: Question, timeout_s: float | None = None) -> Answer:
        self.questions.append(question)
        if self.failures:
            raise self.failures.pop(0)
        return Answer(GENERATION, Selection(), "catalogue-1", 0.5, 1.0, retrieval_shared=self.retrieval_shared)


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    image = tmp_path / "screen.png"
    image.write_bytes(b"png")
    return Sample(
        key="mixture/gmail/1/0",
        dataset="gmail",
        kind="app",
        episode_id="1",
        cluster="1",
        protocol=PromptProtocol.STEP,
        step=0,
        step_count=1,
        strategy=EvaluatedStrategy(AnswerStrategy.MIXTURE),
        images=(image,),
        text="open the inbox",
        truth="Wait for response",
        adapter_id="gmail",
    )


def runner(pipeline: StandInPipeline, tmp_path: Path, patience_s: float = 30) -> SampleRunner:
    return SampleRunner(pipeline, [tmp_path], RetryLimits(timeout_s=5, patience_s=patience_s))


def test_question_holds_image_text_and_kind_of_dataset(sample: Sample, tmp_path: Path) -> None:
    question = to_question(
        sample,
        replace(SPEC, retrieval=RetrievalOptions(top_k=2, kind="category"), decoding=Decoding(seed=4)),
        [tmp_path],
    )
    assert question.prompt.images == (ImagePart(b"png"),)
    assert question.prompt.user_text == "open the inbox"
    assert question.retrieval == RetrievalOptions(top_k=2, kind="app")
    assert (question.decoding, question.oracle) == (Decoding(seed=4), "gmail")


def test_out_of_domain_excludes_own_adapter(sample: Sample, tmp_path: Path) -> None:
    hidden = EvaluatedStrategy(AnswerStrategy.FUSION, FusionMethod.CONCAT, exclude_own_adapter=True)
    question = to_question(
        replace(sample, strategy=hidden), replace(SPEC, retrieval=RetrievalOptions(exclude=("clock",))), [tmp_path]
    )
    assert question.retrieval.exclude == ("clock", "gmail")
    assert question.fusion_method is FusionMethod.CONCAT


def test_image_outside_roots_is_refused(sample: Sample, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="dataset roots"):
        to_question(sample, SPEC, [tmp_path / "elsewhere"])


def test_link_out_of_roots_is_refused(sample: Sample, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link.png").symlink_to(sample.images[0])
    with pytest.raises(InvalidArgumentError, match="dataset roots"):
        to_question(replace(sample, images=(root / "link.png",)), SPEC, [root])


def test_missing_image_is_named(sample: Sample, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"gone\.png"):
        to_question(replace(sample, images=(tmp_path / "gone.png",)), SPEC, [tmp_path])


def test_pipe_in_place_of_image_is_refused_without_waiting(sample: Sample, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(NotFoundError, match=r"pipe\.png is not a file"):
        to_question(replace(sample, images=(tmp_path / "pipe.png",)), SPEC, [tmp_path])


def test_image_that_grew_too_large_is_refused(sample: Sample, tmp_path: Path) -> None:
    os.truncate(sample.images[0], MAX_IMAGE_BYTES)
    assert len(read_image(sample.images[0], [tmp_path])) == MAX_IMAGE_BYTES
    os.truncate(sample.images[0], MAX_IMAGE_BYTES + 1)
    with pytest.raises(InvalidArgumentError, match="more than 64 MiB"):
        to_question(sample, SPEC, [tmp_path])


def test_image_changed_since_planning_is_refused(sample: Sample, tmp_path: Path) -> None:
    planned = replace(sample, image_sha256=(hashlib.sha256(b"png").hexdigest(),))
    assert to_question(planned, SPEC, [tmp_path]).prompt.images == (ImagePart(b"png"),)
    sample.images[0].write_bytes(b"another")
    with pytest.raises(FailedPreconditionError, match=r"screen\.png has changed since the job was planned"):
        to_question(planned, SPEC, [tmp_path])


def test_seed_depends_on_spec_and_question_but_not_on_domain(sample: Sample, tmp_path: Path) -> None:
    inside = to_question(sample, SPEC, [tmp_path]).seed
    outside = to_question(replace(sample, key="random-k-out-of-domain/gmail/1/0"), SPEC, [tmp_path]).seed
    assert inside == outside
    assert inside != to_question(sample, replace(SPEC, seed=1), [tmp_path]).seed
    assert inside != to_question(replace(sample, key="mixture/gmail/1/1"), SPEC, [tmp_path]).seed
    named = replace(sample, strategy=EvaluatedStrategy(AnswerStrategy.RANDOM_K, name="draw-2"))
    assert inside != to_question(named, SPEC, [tmp_path]).seed


async def test_shared_retrieval_is_not_timed(sample: Sample, tmp_path: Path) -> None:
    pipeline = StandInPipeline(retrieval_shared=True)
    record = await runner(pipeline, tmp_path).run(sample, SPEC, asyncio.Event())
    assert record.timings is not None
    assert (record.timings.retrieval_s, record.timings.total_s) == (None, 1.0)


async def test_record_holds_answer_timings_and_usage(sample: Sample, tmp_path: Path) -> None:
    record = await runner(StandInPipeline(), tmp_path).run(sample, SPEC, asyncio.Event())
    assert record.answer == "Wait for response"
    assert record.applied == GENERATION.applied
    assert record.timings is not None
    assert (record.timings.retrieval_s, record.timings.decode_s) == (0.5, 0.3)
    assert record.usage == Usage(3, 1, 2)
    assert record.matches == ()


@pytest.mark.parametrize("error", [OverloadedError("full"), UnavailableError("away")])
async def test_full_or_absent_service_is_tried_again(sample: Sample, tmp_path: Path, error: Exception) -> None:
    pipeline = StandInPipeline(failures=[error, error])
    record = await runner(pipeline, tmp_path).run(sample, SPEC, asyncio.Event())
    assert record.error is None
    assert len(pipeline.questions) == 3


async def test_tries_end_with_patience(sample: Sample, tmp_path: Path) -> None:
    pipeline = StandInPipeline(failures=[OverloadedError("full")] * 99)
    record = await runner(pipeline, tmp_path, patience_s=0.2).run(sample, SPEC, asyncio.Event())
    assert record.error is not None
    assert record.error.reason == "QUEUE_FULL"
    assert record.answer is None


async def test_invalid_request_is_not_tried_again(sample: Sample, tmp_path: Path) -> None:
    pipeline = StandInPipeline(failures=[InvalidArgumentError("prompt", "too long")])
    record = await runner(pipeline, tmp_path).run(sample, SPEC, asyncio.Event())
    assert record.error is not None
    assert (record.error.reason, record.error.message) == ("INVALID_ARGUMENT", "prompt: too long")
    assert len(pipeline.questions) == 1


async def test_unforeseen_error_is_recorded_without_internals(sample: Sample, tmp_path: Path) -> None:
    pipeline = StandInPipeline(failures=[ZeroDivisionError("secret path")])
    record = await runner(pipeline, tmp_path).run(sample, SPEC, asyncio.Event())
    assert record.error is not None
    assert record.error.reason == "INTERNAL"
    assert "secret" not in record.error.message


async def test_stop_in_pause_interrupts_sample(sample: Sample, tmp_path: Path) -> None:
    stop = asyncio.Event()
    stop.set()
    pipeline = StandInPipeline(failures=[UnavailableError("away")] * 99)
    with pytest.raises(InterruptedSampleError):
        await runner(pipeline, tmp_path).run(sample, SPEC, stop)
