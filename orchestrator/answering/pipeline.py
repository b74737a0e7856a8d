"""Retrieve, compose, generate: how one prompt is answered, online and in evaluation alike."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from infra.contract.adapter import Adapter, is_same_base_model
from infra.contract.composition import Composition
from infra.contract.errors import BaseModelMismatchError, InvalidArgumentError, UnavailableError
from infra.contract.generation import Decoding, Generation
from infra.contract.prompt import Prompt
from infra.contract.retrieval import RetrievalOptions, Selection
from infra.runtime.deadline import Deadline
from orchestrator.answering.baselines import choose, uniform
from orchestrator.answering.model_info import ModelInfo
from orchestrator.answering.question import RETRIEVE_PARAMETERS, Answer, Question, RetrievalResult, RetrieveArguments
from orchestrator.answering.shared_calls import Shared, SharedCalls, prompt_digest
from orchestrator.answering.strategy import AnswerStrategy, compose, compose_given

#: Age at which the running model is looked up again. A generation service that restarts with another model is noticed
#: earlier, by the first call that fails.
_MODEL_MAX_AGE_S = 60.0
#: The fields of AnswerRequest that become the arguments of a retrieval.
_ARGUMENTS = RetrieveArguments(prompt="prompt", options="retrieval")
#: Catalogue listings kept for running jobs; a job needs one per base model, kind and tags.
_MAX_CATALOGUES = 64


class RetrievalClientProtocol(Protocol):
    """What the pipeline needs of the retrieval service: orchestrator.clients.retrieval.RetrievalClient."""

    async def retrieve(
        self,
        prompt: Prompt,
        options: RetrievalOptions,
        timeout_s: float | None = None,
        arguments: RetrieveArguments = RETRIEVE_PARAMETERS,
    ) -> RetrievalResult:
        """Return the adapters that fit `prompt`. An InvalidArgumentError names the field as `arguments` does."""

    def list_adapters(
        self, base_model: str = "", kind: str = "", tags: Sequence[str] = (), timeout_s: float | None = None
    ) -> Coroutine[Any, Any, list[Adapter]]:
        """Return the adapters of the catalogue, ordered by id."""


class GenerationClientProtocol(Protocol):
    """What the pipeline needs of the generation service: orchestrator.clients.generation.GenerationClient."""

    async def get_model(self, timeout_s: float | None = None) -> ModelInfo:
        """Return the base model that runs, and its limits."""

    async def generate(
        self, prompt: Prompt, composition: Composition, decoding: Decoding, timeout_s: float | None = None
    ) -> Generation:
        """Return the answer to `prompt`."""

    def stream(
        self, prompt: Prompt, composition: Composition, decoding: Decoding, timeout_s: float | None = None
    ) -> AsyncIterator[str | Generation]:
        """Yield the answer's text piece by piece, then the complete Generation."""


@dataclass(frozen=True)
class _Composed:
    """The composition that answers a question, and the retrieval that led to it."""

    composition: Composition
    retrieval: RetrievalResult
    retrieval_s: float
    retrieval_shared: bool

    def answer(self, generation: Generation, total_s: float) -> Answer:
        return Answer(
            generation,
            self.retrieval.selection,
            self.retrieval.catalogue_revision,
            self.retrieval_s,
            total_s,
            self.retrieval_shared,
            self.retrieval.timings,
            self.retrieval.stale,
        )


class Pipeline:
    """Answers questions with the retrieval and the generation service."""

    def __init__(self, retrieval: RetrievalClientProtocol, generation: GenerationClientProtocol) -> None:
        self._retrieval = retrieval
        self._generation = generation
        self._model: ModelInfo | None = None
        self._model_expires_at = 0.0
        self._retrievals: SharedCalls[RetrievalResult] = SharedCalls()
        self._catalogues: SharedCalls[list[Adapter]] = SharedCalls(_MAX_CATALOGUES)

    async def answer(self, question: Question, timeout_s: float | None = None) -> Answer:
        """Return the answer to `question`. Raises DeadlineError after `timeout_s` seconds."""
        deadline = Deadline.after(timeout_s)
        composed = await self._retrieve_and_compose(question, deadline)
        with self._model_in_doubt_on_failure():
            generation = await self._generation.generate(
                question.prompt, composed.composition, question.decoding, deadline.remaining_s()
            )
        return composed.answer(generation, deadline.elapsed_s())

    async def stream(
        self, question: Question, timeout_s: float | None = None
    ) -> AsyncGenerator[Selection | str | Answer, None]:
        """Yield the selection, then the answer's text piece by piece, then the complete Answer."""
        deadline = Deadline.after(timeout_s)
        composed = await self._retrieve_and_compose(question, deadline)
        yield composed.retrieval.selection
        with self._model_in_doubt_on_failure():
            pieces = self._generation.stream(
                question.prompt, composed.composition, question.decoding, deadline.remaining_s()
            )
            async for piece in pieces:
                yield composed.answer(piece, deadline.elapsed_s()) if isinstance(piece, Generation) else piece

    async def match(self, question: Question, timeout_s: float | None = None) -> RetrievalResult:
        """Return the adapters that would be retrieved for `question`, without an answer."""
        return (await self._retrieve(question, Deadline.after(timeout_s))).value

    async def model(self, timeout_s: float | None = None) -> ModelInfo:
        """Return the base model that runs, as known for up to a minute."""
        return await self._current_model(Deadline.after(timeout_s))

    async def _retrieve_and_compose(self, question: Question, deadline: Deadline) -> _Composed:
        strategy = question.strategy
        if question.adapters:
            composition = compose_given(strategy, question.adapters, question.fusion_method)
            return _Composed(composition, RetrievalResult(), deadline.elapsed_s(), retrieval_shared=False)
        if strategy.ignores_prompt:
            composition = uniform(await self._catalogue_choice(question, deadline))
            return _Composed(composition, RetrievalResult(), deadline.elapsed_s(), retrieval_shared=False)
        retrieval = Shared(RetrievalResult(), is_reused=False)
        if strategy.retrieves:
            retrieval = await self._retrieve(question, deadline)
        composition = compose(strategy, retrieval.value.selection, question.fusion_method, question.oracle)
        return _Composed(composition, retrieval.value, deadline.elapsed_s(), retrieval.is_reused)

    async def _retrieve(self, question: Question, deadline: Deadline) -> Shared[RetrievalResult]:
        options = await self._options(question, deadline)

        def call() -> Coroutine[Any, Any, RetrievalResult]:
            return self._retrieval.retrieve(question.prompt, options, deadline.remaining_s(), _ARGUMENTS)

        if question.shared_by:
            key = (question.shared_by, prompt_digest(question.prompt), options)
            return await self._retrievals.get(key, call, deadline.remaining_s())
        return Shared(await call(), is_reused=False)

    async def _catalogue_choice(self, question: Question, deadline: Deadline) -> list[Adapter]:
        """Return the adapters of the catalogue that a strategy which ignores the prompt applies."""
        options = await self._options(question, deadline)

        def call() -> Coroutine[Any, Any, list[Adapter]]:
            return self._retrieval.list_adapters(options.base_model, options.kind, options.tags, deadline.remaining_s())

        if question.shared_by:
            key = (question.shared_by, options.base_model, options.kind, options.tags)
            adapters = (await self._catalogues.get(key, call, deadline.remaining_s())).value
        else:
            adapters = await call()
        chosen = choose(question.strategy, adapters, options, question.seed)
        if question.strategy is AnswerStrategy.UNIFORM_ALL:
            await self._check_adapter_count(len(chosen), deadline)
        return chosen

    async def _options(self, question: Question, deadline: Deadline) -> RetrievalOptions:
        """Return the question's retrieval options with the base model that runs filled in."""
        base_model = (await self._current_model(deadline)).base_model
        requested = question.retrieval.base_model
        if requested and not is_same_base_model(requested, base_model):
            raise BaseModelMismatchError(
                f"the request asks for adapters of {requested!r}; this server runs {base_model!r}. "
                "Leave retrieval.base_model empty, or call a server of that model",
                base_model=base_model,
            )
        return replace(question.retrieval, base_model=base_model)

    async def _check_adapter_count(self, count: int, deadline: Deadline) -> None:
        """Raise InvalidArgumentError for more adapters than the generation service composes at once."""
        if not _too_many(count, await self._current_model(deadline)):
            return
        self._model_expires_at = 0.0  # The service may have restarted with a higher limit.
        model = await self._current_model(deadline)
        if _too_many(count, model):
            raise InvalidArgumentError(
                "strategy",
                f"uniform-all composes all {count} adapters of the catalogue at once, and the generation service at "
                f"most {model.limits.max_adapters}. Raise its --max-adapters, or narrow the catalogue "
                "(retrieval.kind, tags, include)",
            )

    async def _current_model(self, deadline: Deadline) -> ModelInfo:
        if self._model is None or time.monotonic() >= self._model_expires_at:
            self._model = await self._generation.get_model(deadline.remaining_s())
            self._model_expires_at = time.monotonic() + _MODEL_MAX_AGE_S
        return self._model

    @contextmanager
    def _model_in_doubt_on_failure(self) -> Iterator[None]:
        """Look the running model up again after a call that failed because the service went away or runs another."""
        try:
            yield
        except (UnavailableError, BaseModelMismatchError):
            self._model_expires_at = 0.0
            raise


def _too_many(adapter_count: int, model: ModelInfo) -> bool:
    return 0 < model.limits.max_adapters < adapter_count
