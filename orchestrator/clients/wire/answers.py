"""Messages of AnswerService to Question and Answer, and back."""

from __future__ import annotations

import uuid
from typing import Any

from loraretriever.v1 import orchestrator_service_pb2 as pb

from infra.contract.adapter import check_adapter_id
from infra.contract.composition import FusionMethod
from infra.contract.errors import field_path
from infra.contract.generation import Decoding
from infra.contract.retrieval import RetrievalOptions
from infra.runtime.wire import (
    decoding_from_proto,
    decoding_to_proto,
    duration_from_seconds,
    enum_from_proto,
    enum_to_proto,
    fusion_method_from_proto,
    fusion_method_to_proto,
    generation_from_proto,
    generation_to_proto,
    prompt_from_proto,
    prompt_to_proto,
    retrieval_options_from_proto,
    retrieval_options_to_proto,
    retrieval_timings_from_proto,
    retrieval_timings_to_proto,
    seconds_from_duration,
    selection_from_proto,
    selection_to_proto,
    weighted_adapter_to_proto,
    weighted_adapters_from_proto,
)
from orchestrator.answering.question import Answer, Question
from orchestrator.answering.strategy import AnswerStrategy


def question_from_proto(message: pb.AnswerRequest | pb.StreamAnswerRequest) -> Question:
    """Return the question of a request; its strategy is mixture where none is set.

    random-k draws its adapters by the decoding seed; without one every request draws others.
    """
    strategy = enum_from_proto(AnswerStrategy, pb.AnswerStrategy, message.strategy, "strategy")
    with field_path("prompt"):
        prompt = prompt_from_proto(message.prompt)
    if message.adapter_id:
        check_adapter_id(message.adapter_id, "adapter_id")
    decoding = nested_decoding(message)
    return Question(
        prompt=prompt,
        strategy=strategy or AnswerStrategy.MIXTURE,
        retrieval=nested_retrieval(message),
        fusion_method=fusion_method_from_proto(message.fusion_method, "fusion_method") or FusionMethod.AUTO,
        decoding=decoding,
        oracle=message.adapter_id,
        seed=uuid.uuid4().hex if decoding.seed is None else str(decoding.seed),
        adapters=weighted_adapters_from_proto(message.adapters),
    )


def question_to_proto(question: Question) -> dict[str, Any]:
    """Return the fields that AnswerRequest and StreamAnswerRequest share."""
    return {
        "prompt": prompt_to_proto(question.prompt),
        "retrieval": retrieval_options_to_proto(question.retrieval),
        "strategy": enum_to_proto(pb.AnswerStrategy, question.strategy),
        "fusion_method": fusion_method_to_proto(question.fusion_method),
        "decoding": decoding_to_proto(question.decoding),
        "adapter_id": question.oracle,
        "adapters": [weighted_adapter_to_proto(adapter) for adapter in question.adapters],
    }


def answer_from_proto(message: pb.AnswerResponse, total_s: float) -> Answer:
    """Return an answer; `total_s` is the time that the caller measured."""
    timed = message.HasField("retrieval_timings")
    return Answer(
        generation=generation_from_proto(message.answer),
        selection=selection_from_proto(message.selection),
        catalogue_revision=message.catalogue_revision,
        retrieval_s=seconds_from_duration(message.retrieval_time),
        total_s=total_s,
        retrieval_timings=retrieval_timings_from_proto(message.retrieval_timings) if timed else None,
        stale=message.stale,
    )


def answer_to_proto(answer: Answer) -> pb.AnswerResponse:
    """Return an answer as its message."""
    timings = answer.retrieval_timings
    return pb.AnswerResponse(
        answer=generation_to_proto(answer.generation),
        selection=selection_to_proto(answer.selection),
        catalogue_revision=answer.catalogue_revision,
        retrieval_time=duration_from_seconds(answer.retrieval_s),
        retrieval_timings=None if timings is None else retrieval_timings_to_proto(timings),
        stale=answer.stale,
    )


def nested_decoding(message: Any) -> Decoding:
    """Return the `decoding` of a request; errors name the field below it."""
    with field_path("decoding"):
        return decoding_from_proto(message.decoding)


def nested_retrieval(message: Any) -> RetrievalOptions:
    """Return the `retrieval` of a request; errors name the field below it."""
    with field_path("retrieval"):
        return retrieval_options_from_proto(message.retrieval)
