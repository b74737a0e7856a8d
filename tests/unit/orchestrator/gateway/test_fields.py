"""Fields that are only taken at their neutral values."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from orchestrator.gateway.requests import ChatRequest, CompletionRequest

CHAT: dict[str, Any] = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}
TEXT: dict[str, Any] = {"model": "auto", "prompt": "hello"}


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "logprobs": False},
        {"tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "parallel_tool_calls": True},
        {"user": "u1", "metadata": {"a": "b"}, "service_tier": "auto", "store": False, "seed": 5},
        dict.fromkeys(("n", "stop", "temperature", "top_p", "seed", "tools", "max_tokens", "stream", "logprobs")),
    ],
)
def test_neutral_fields_are_accepted(fields: dict[str, Any]) -> None:
    request = ChatRequest.model_validate(CHAT | fields)
    assert request.question(request.plan()).prompt.user_text == "hello"


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"n": True}, "n"),
        ({"n": 0}, "n"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"repetition_penalty": 1.2}, "repetition_penalty"),
        ({"store": True}, "store"),
        ({"modalities": ["text", "audio"]}, "modalities"),
    ],
)
def test_field_that_the_engine_lacks_is_refused_by_name(fields: dict[str, Any], name: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ChatRequest.model_validate(CHAT | fields)
    assert [error["loc"] for error in caught.value.errors()] == [(name,)]


@pytest.mark.parametrize("fields", [{"echo": True}, {"suffix": "x"}, {"best_of": 2}, {"logprobs": 0}, {"prompt": [1]}])
def test_text_completions_refuse_what_they_lack(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CompletionRequest.model_validate(TEXT | fields)


def test_decoding_takes_every_sampling_field() -> None:
    fields = {"max_completion_tokens": 7, "temperature": 0.5, "top_p": 0.9, "top_k": 4, "seed": 3, "stop": "x"}
    decoding = ChatRequest.model_validate(CHAT | fields).decoding()
    assert (decoding.max_new_tokens, decoding.temperature, decoding.top_p) == (7, 0.5, 0.9)
    assert (decoding.token_top_k, decoding.seed, decoding.stop) == (4, 3, ("x",))
