"""Retrieve, compose, generate: one prompt's way through the tiers, online and in evaluation alike."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, assert_never

from infra.contract.adapter import Adapter
from infra.contract.composition import Base, Composition, Fusion, FusionMethod, Mixture, WeightedAdapter
from infra.contract.errors import BaseModelMismatchError, InvalidArgumentError, UnavailableError
from infra.contract.generation import Decoding, Generation
from infra.contract.prompt import Prompt
from infra.contract.retrieval import RetrievalOptions, RetrievalTimings, Selection
from orchestrator.answering.baselines import DEFAULT_TOP_K, allowed, draw, uniform
from orchestrator.answering.clock import Clock
from orchestrator.answering.shared_calls import Shared, SharedCalls, prompt_digest
from orchestrator.answering.strategy import AnswerStrategy

BASE_MODEL_AGE_S = 60.0
MAX_CATALOGUES = 64


@dataclass(frozen=True)
class Retrieved:
    """The selection of one prompt, and the revision of the catalogue that was searched ("" when none was).

    `timings` is None where nothing was searched; `stale`: the catalogue could not be reached, the last known one was
    searched.
    """

    selection: Selection = field(default_factory=Selection)
    catalogue_revision: str = ""
    timings: RetrievalTimings | None = None
    stale: bool = False


class Retrieval(Protocol):
    """What the pipeline needs of the retrieval service."""

    async def retrieve(self, prompt: Prompt, options: RetrievalOptions, timeout_s: float | None = None) -> Retrieved:
        """Return the adapters that fit `prompt`."""

    def list_adapters(
        self, base_model: str = "", kind: str = "", tags: Sequence[str] = (), timeout_s: float | None = None
    ) -> Coroutine[Any, Any, list[Adapter]]:
        """Return the adapters of the catalogue, ordered by id."""


class GenerationTier(Protocol):
    """What the pipeline needs of the generation service."""

    async def base_model(self, timeout_s: float | None = None) -> str:
        """Return the name of the base model that runs."""

    async def generate(
        self, prompt: Prompt, composition: Composition, decoding: Decoding, timeout_s: float | None = None
    ) -> Generation:
        """Return the answer to `prompt`."""

    def stream(
        self, prompt: Prompt, composition: Composition, decoding: Decoding, timeout_s: float | None = None
    ) -> AsyncIterator[str | Generation]:
        """Yield the answer piece by piece, then the whole of it."""


@dataclass(frozen=True)
class Question:
    """A prompt and how to answer it.

    `oracle` names the adapter known to be right, for AnswerStrategy.ORACLE only; `seed` draws the adapters of
    AnswerStrategy.RANDOM_K. Questions with the same non-empty `shared_by` (a job's id) that put the same prompt to
    retrieval, with the same options, share one call, and all of them one look at the catalogue.
    """

    prompt: Prompt
    strategy: AnswerStrategy = AnswerStrategy.MIXTURE
    retrieval: RetrievalOptions = field(default_factory=RetrievalOptions)
    fusion_method: FusionMethod = FusionMethod.LINEAR
    decoding: Decoding = field(default_factory=Decoding)
    oracle: str = ""
    seed: str = ""
    shared_by: str = ""


@dataclass(frozen=True)
class Answer:
    """An answer, what was retrieved for it (nothing: the base model alone answered), and seconds it took.

    `retrieval_shared`: another question had retrieved it already, so that `retrieval_s` and `retrieval_timings` say
    nothing of this answer. `stale`: see Retrieved.
    """

    generation: Generation
    selection: Selection
    catalogue_revision: str
    retrieval_s: float
    total_s: float
    retrieval_shared: bool = False
    retrieval_timings: RetrievalTimings | None = None
    stale: bool = False


def compose(
    strategy: AnswerStrategy,
    selection: Selection,
    fusion_method: FusionMethod = FusionMethod.LINEAR,
    oracle: str = "",
) -> Composition:
    """Return how the retrieved adapters answer together; the base model alone when none was retrieved.

    Selection is the most similar adapter with weight 1, the oracle the adapter named `oracle` with weight 1
    (InvalidArgumentError when none is named); mixture and fusion take the weights of retrieval as they are.
    """
    match strategy:
        case AnswerStrategy.BASE:
            return Base()
        case AnswerStrategy.ORACLE:
            if not oracle:
                raise InvalidArgumentError("strategy", "oracle needs the adapter known to be right; none is named")
            return Mixture((WeightedAdapter(oracle, 1.0),))
        case AnswerStrategy.SELECTION:
            return Mixture((replace(selection.weighted[0], weight=1.0),)) if selection.matches else Base()
        case AnswerStrategy.MIXTURE:
            return Mixture(selection.weighted) if selection.matches else Base()
        case AnswerStrategy.FUSION:
            return Fusion(selection.weighted, fusion_method) if selection.matches else Base()
        case AnswerStrategy.UNIFORM_ALL | AnswerStrategy.RANDOM_K:
            raise InvalidArgumentError(
                "strategy", f"{strategy.value} takes adapters of the catalogue, not retrieved ones"
            )
        case _:
            assert_never(strategy)


@dataclass(frozen=True)
class _Prepared:
    composition: Composition
    retrieved: Retrieved
    retrieval_s: float
    shared: bool

    def answer(self, generation: Generation, total_s: float) -> Answer:
        found = self.retrieved
        return Answer(
            generation,
            found.selection,
            found.catalogue_revision,
            self.retrieval_s,
            total_s,
            self.shared,
            found.timings,
            found.stale,
        )


class Pipeline:
    """Answers questions with the retrieval and the generation service."""

    def __init__(self, retrieval: Retrieval, generation: GenerationTier) -> None:
        self._retrieval = retrieval
        self._generation = generation
        self._base_model = ""
        self._base_model_until = 0.0
        self._retrievals: SharedCalls[Retrieved] = SharedCalls()
        self._catalogues: SharedCalls[list[Adapter]] = SharedCalls(MAX_CATALOGUES)

    async def answer(self, question: Question, timeout_s: float | None = None) -> Answer:
        """Return the answer to `question`; DeadlineError after `timeout_s` seconds."""
        clock = Clock(timeout_s)
        prepared = await self._prepare(question, clock)
        with self._base_model_in_doubt(), _advice(question, prepared.composition):
            generation = await self._generation.generate(
                question.prompt, prepared.composition, question.decoding, clock.remaining_s()
            )
        return prepared.answer(generation, clock.elapsed_s())

    async def stream(
        self, question: Question, timeout_s: float | None = None
    ) -> AsyncIterator[Selection | str | Answer]:
        """Yield the selection, then the answer piece by piece, then the whole Answer."""
        clock = Clock(timeout_s)
        prepared = await self._prepare(question, clock)
        yield prepared.retrieved.selection
        with self._base_model_in_doubt(), _advice(question, prepared.composition):
            pieces = self._generation.stream(
                question.prompt, prepared.composition, question.decoding, clock.remaining_s()
            )
            async for piece in pieces:
                yield prepared.answer(piece, clock.elapsed_s()) if isinstance(piece, Generation) else piece

    async def _prepare(self, question: Question, clock: Clock) -> _Prepared:
        """Return the composition that answers, and what was retrieved for it."""
        if question.strategy.takes_any:
            composition = uniform(await self._taken(question, clock))
            return _Prepared(composition, Retrieved(), clock.elapsed_s(), shared=False)
        found = await self._retrieve(question, clock)
        composition = compose(question.strategy, found.value.selection, question.fusion_method, question.oracle)
        return _Prepared(composition, found.value, clock.elapsed_s(), found.is_reused)

    async def _taken(self, question: Question, clock: Clock) -> list[Adapter]:
        """Return the adapters of the catalogue that are taken whatever the prompt is."""
        options = await self._options(question, clock)

        def list_all() -> Coroutine[Any, Any, list[Adapter]]:
            return self._retrieval.list_adapters(options.base_model, options.kind, options.tags, clock.remaining_s())

        if question.shared_by:
            key = (question.shared_by, options.base_model, options.kind, options.tags)
            adapters = (await self._catalogues.get(key, list_all, clock.remaining_s())).value
        else:
            adapters = await list_all()
        choice = allowed(adapters, options)
        if question.strategy is AnswerStrategy.RANDOM_K:
            return draw(choice, options.top_k or DEFAULT_TOP_K, question.seed)
        return choice

    async def _retrieve(self, question: Question, clock: Clock) -> Shared[Retrieved]:
        if not question.strategy.retrieves:
            return Shared(Retrieved(), is_reused=False)
        options = await self._options(question, clock)

        def look_up() -> Coroutine[Any, Any, Retrieved]:
            return self._retrieval.retrieve(question.prompt, options, clock.remaining_s())

        try:
            if question.shared_by:
                key = (question.shared_by, prompt_digest(question.prompt), options)
                return await self._retrievals.get(key, look_up, clock.remaining_s())
            return Shared(await look_up(), is_reused=False)
        except InvalidArgumentError as error:
            raise _as_asked(error) from error

    async def _options(self, question: Question, clock: Clock) -> RetrievalOptions:
        """Return the question's retrieval options with the base model that runs."""
        base_model = await self._current_base_model(clock)
        wanted = question.retrieval.base_model
        if wanted and wanted != base_model:
            raise BaseModelMismatchError(
                f"the request asks for adapters of {wanted!r}; this server runs {base_model!r}. "
                "Leave retrieval.base_model empty, or ask a server of that model",
                base_model=base_model,
            )
        return replace(question.retrieval, base_model=base_model)

    async def _current_base_model(self, clock: Clock) -> str:
        if time.monotonic() >= self._base_model_until:
            self._base_model = await self._generation.base_model(clock.remaining_s())
            self._base_model_until = time.monotonic() + BASE_MODEL_AGE_S
        return self._base_model

    @contextmanager
    def _base_model_in_doubt(self) -> Iterator[None]:
        """Ask for the base model again once a call shows that the tier went away or runs another one."""
        try:
            yield
        except (UnavailableError, BaseModelMismatchError):
            self._base_model_until = 0.0
            raise


def _as_asked(error: InvalidArgumentError) -> InvalidArgumentError:
    """Return an error of a RetrieveAdaptersRequest with the field path that it has in an AnswerRequest."""
    for theirs, ours in (("prompts[0]", "prompt"), ("options", "retrieval")):
        if error.field == theirs or error.field.startswith(f"{theirs}."):
            return InvalidArgumentError(ours + error.field.removeprefix(theirs), error.description, **error.metadata)
    return error


@contextmanager
def _advice(question: Question, composition: Composition) -> Iterator[None]:
    """Say what to do where the generation service refuses to compose every adapter at once."""
    try:
        yield
    except InvalidArgumentError as error:
        if question.strategy is not AnswerStrategy.UNIFORM_ALL or not error.field.startswith("composition"):
            raise
        count = 0 if isinstance(composition, Base) else len(composition.adapters)
        raise InvalidArgumentError(
            "strategy",
            f"uniform-all composes all {count} adapters of the catalogue at once, and the generation service refuses: "
            f"{error.description}. Raise its --max-adapters, or narrow the catalogue (retrieval.kind, tags, include)",
            **error.metadata,
        ) from error
