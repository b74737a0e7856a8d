"""The bodies of /v1/chat/completions and /v1/completions, and the question that each asks."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import Field

from infra.contract.errors import InvalidArgumentError
from infra.contract.generation import Decoding
from infra.contract.prompt import Prompt
from orchestrator.answering.question import Question
from orchestrator.gateway.content import Messages, message_field, prompt_of
from orchestrator.gateway.fields import RequestModel, Strings, Unused, only
from orchestrator.gateway.steering import EXTENSION, Plan, Steering, plan_of

_FIELD_OF_DECODING = {"max_new_tokens": "max_tokens", "token_top_k": "top_k"}
_FIELD_OF_RETRIEVAL = {"temperature": "weighting_temperature", "strategy": "retrieval_strategy"}


class StreamOptions(RequestModel):
    """What a stream contains besides the text."""

    include_usage: bool | None = None
    include_obfuscation: only(False) = None  # type: ignore[valid-type]


class AnswerRequest(RequestModel):
    """The fields that both endpoints share."""

    model: str = Field(description="auto, auto:METHOD, base, or an adapter's id")
    max_tokens: int | None = Field(None, description="most tokens of the answer; null is the server's default")
    temperature: float | None = Field(None, description="divides the logits before sampling; null or 0 is greedy")
    top_p: float | None = None
    top_k: int | None = Field(None, description="sample among this many tokens; null or 0 is all")
    seed: int | None = None
    stop: Strings | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    loraretriever: Steering | None = None
    user: Unused = None

    # Not offered by the engine.
    n: only(1) = None  # type: ignore[valid-type]
    frequency_penalty: only(0) = None  # type: ignore[valid-type]
    presence_penalty: only(0) = None  # type: ignore[valid-type]
    logit_bias: only({}) = None  # type: ignore[valid-type]

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def prompt(self) -> Prompt:
        """Return the prompt. Raises InvalidArgumentError."""
        raise NotImplementedError

    def plan(self) -> Plan:
        """Return how to answer. Raises InvalidArgumentError and UnknownModelError."""
        return plan_of(self.model, self.loraretriever)

    def question(self, plan: Plan) -> Question:
        """Return the question, answered by `plan`. Raises InvalidArgumentError with the path of the field."""
        if self.stream_options is not None and not self.stream:
            raise InvalidArgumentError("stream_options", "is for streams; leave it out, or send stream: true")
        return Question(
            prompt=self.prompt(),
            strategy=plan.strategy,
            retrieval=plan.retrieval,
            fusion_method=plan.fusion_method,
            decoding=self.decoding(),
            oracle=plan.adapter,
            seed=uuid.uuid4().hex,
            adapters=plan.weights,
        )

    def decoding(self) -> Decoding:
        """Return the decoding options. Raises InvalidArgumentError."""
        with _renamed(_FIELD_OF_DECODING):
            return Decoding(
                max_new_tokens=self.max_tokens,
                temperature=self.temperature or 0.0,
                top_p=1.0 if self.top_p is None else self.top_p,
                token_top_k=self.top_k or 0,
                seed=self.seed,
                stop=tuple(self.stop or ()),
            )


class ChatRequest(AnswerRequest):
    """A conversation to answer."""

    messages: Messages
    max_completion_tokens: int | None = Field(None, description="the newer name of max_tokens")

    metadata: Unused = None
    prompt_cache_key: Unused = None
    prompt_cache_retention: Unused = None
    safety_identifier: Unused = None
    parallel_tool_calls: Unused = None  # Tools themselves are not offered.
    service_tier: only("auto", "default") = None  # type: ignore[valid-type]
    store: only(False) = None  # type: ignore[valid-type]

    # Not offered by the engine.
    audio: only() = None  # type: ignore[valid-type]
    function_call: only("none") = None  # type: ignore[valid-type]
    functions: only([]) = None  # type: ignore[valid-type]
    logprobs: only(False) = None  # type: ignore[valid-type]
    modalities: only(["text"]) = None  # type: ignore[valid-type]
    prediction: only() = None  # type: ignore[valid-type]
    reasoning_effort: only("none") = None  # type: ignore[valid-type]
    response_format: only({"type": "text"}) = None  # type: ignore[valid-type]
    tool_choice: only("none", "auto") = None  # type: ignore[valid-type]
    tools: only([]) = None  # type: ignore[valid-type]
    top_logprobs: only() = None  # type: ignore[valid-type]
    verbosity: only("medium") = None  # type: ignore[valid-type]
    web_search_options: only() = None  # type: ignore[valid-type]

    def prompt(self) -> Prompt:
        """Return the conversation as a prompt. Raises InvalidArgumentError."""
        return prompt_of(self.messages)

    def decoding(self) -> Decoding:
        """Return the decoding options. Raises InvalidArgumentError."""
        if self.max_completion_tokens is None:
            return super().decoding()
        if self.max_tokens not in (None, self.max_completion_tokens):
            raise InvalidArgumentError("max_tokens", "contradicts max_completion_tokens; send one of them")
        with _renamed({"max_tokens": "max_completion_tokens"}):
            return self.model_copy(
                update={"max_tokens": self.max_completion_tokens, "max_completion_tokens": None}
            ).decoding()


class CompletionRequest(AnswerRequest):
    """A text to answer. It becomes the user's only message: models that are served follow a chat template."""

    prompt_text: Strings = Field(alias="prompt", description="one text")

    # Not offered by the engine.
    best_of: only(1) = None  # type: ignore[valid-type]
    echo: only(False) = None  # type: ignore[valid-type]
    logprobs: only() = None  # type: ignore[valid-type]
    suffix: only("") = None  # type: ignore[valid-type]

    def prompt(self) -> Prompt:
        """Return the text as a prompt. Raises InvalidArgumentError."""
        if len(self.prompt_text) != 1:
            raise InvalidArgumentError("prompt", f"{len(self.prompt_text)} prompts; send one per request")
        with renamed_prompt("prompt"):
            return Prompt.of(self.prompt_text[0])


@contextmanager
def request_fields(chat: bool) -> Iterator[None]:
    """Give an InvalidArgumentError of the pipeline the path of the field in the request of this API."""
    try:
        yield
    except InvalidArgumentError as error:
        raise error.renamed(_request_field(error.field, chat)) from error


@contextmanager
def renamed_prompt(name: str) -> Iterator[None]:
    """Give every InvalidArgumentError about a prompt the field `name`."""
    try:
        yield
    except InvalidArgumentError as error:
        raise error.renamed(name) from error


def _request_field(path: str, chat: bool) -> str:
    top, _, rest = path.partition(".")
    match top:
        case "prompt":
            return message_field(rest) if chat else "prompt"
        case "decoding":
            return _FIELD_OF_DECODING.get(rest, rest)
        case "retrieval":
            return f"{EXTENSION}.{_FIELD_OF_RETRIEVAL.get(rest, rest)}"
        case "strategy" | "fusion_method":
            return f"{EXTENSION}.method"
        case "adapter_id":
            return "model"
        case _:
            return f"{EXTENSION}.weights" if top.startswith(("adapters", "composition")) else path


@contextmanager
def _renamed(names: dict[str, str]) -> Iterator[None]:
    try:
        yield
    except InvalidArgumentError as error:
        raise error.renamed(names.get(error.field, error.field)) from error
