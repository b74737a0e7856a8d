"""Retrieve, compose, generate: one prompt's way through the tiers, online and in evaluation alike."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol, assert_never

from infra.contract.composition import Base, Composition, Fusion, FusionMethod, Mixture, WeightedAdapter
from infra.contract.errors import BaseModelMismatchError, DeadlineError, InvalidArgumentError, UnavailableError
from infra.contract.generation import Decoding, Generation
from infra.contract.prompt import Prompt
from infra.contract.retrieval import RetrievalOptions, Selection
from orchestrator.evaluation.spec import AnswerStrategy

BASE_MODEL_AGE_S = 60.0


@dataclass(frozen=True)
class Retrieved:
    """The selection of one prompt, and the revision of the catalogue that was searched ("" when none was)."""

    selection: Selection = field(default_factory=Selection)
    catalogue_revision: str = ""


class Retrieval(Protocol):
    """What the pipeline needs of the retrieval service."""

    async def retrieve(self, prompt: Prompt, options: RetrievalOptions, timeout_s: float | None = None) -> Retrieved:
        """Return the adapters that fit `prompt`."""


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
    """A prompt and how to answer it. `oracle` names the adapter known to be right, for AnswerStrategy.ORACLE only."""

    prompt: Prompt
    strategy: AnswerStrategy = AnswerStrategy.MIXTURE
    retrieval: RetrievalOptions = field(default_factory=RetrievalOptions)
    fusion_method: FusionMethod = FusionMethod.LINEAR
    decoding: Decoding = field(default_factory=Decoding)
    oracle: str = ""


@dataclass(frozen=True)
class Answer:
    """An answer, what was retrieved for it (nothing: the base model alone answered), and seconds it took."""

    generation: Generation
    selection: Selection
    catalogue_revision: str
    retrieval_s: float
    total_s: float


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
        case _:
            assert_never(strategy)


class Pipeline:
    """Answers questions with the retrieval and the generation service."""

    def __init__(self, retrieval: Retrieval, generation: GenerationTier) -> None:
        self._retrieval = retrieval
        self._generation = generation
        self._base_model = ""
        self._base_model_until = 0.0

    async def answer(self, question: Question, timeout_s: float | None = None) -> Answer:
        """Return the answer to `question`; DeadlineError after `timeout_s` seconds."""
        clock = _Clock(timeout_s)
        retrieved = await self._retrieve(question, clock)
        composition = compose(question.strategy, retrieved.selection, question.fusion_method, question.oracle)
        retrieval_s = clock.elapsed_s()
        with self._base_model_in_doubt():
            generation = await self._generation.generate(
                question.prompt, composition, question.decoding, clock.remaining_s()
            )
        return Answer(generation, retrieved.selection, retrieved.catalogue_revision, retrieval_s, clock.elapsed_s())

    async def stream(
        self, question: Question, timeout_s: float | None = None
    ) -> AsyncIterator[Selection | str | Answer]:
        """Yield the selection, then the answer piece by piece, then the whole Answer."""
        clock = _Clock(timeout_s)
        retrieved = await self._retrieve(question, clock)
        composition = compose(question.strategy, retrieved.selection, question.fusion_method, question.oracle)
        retrieval_s = clock.elapsed_s()
        yield retrieved.selection
        with self._base_model_in_doubt():
            pieces = self._generation.stream(question.prompt, composition, question.decoding, clock.remaining_s())
            async for piece in pieces:
                if isinstance(piece, Generation):
                    yield Answer(
                        piece, retrieved.selection, retrieved.catalogue_revision, retrieval_s, clock.elapsed_s()
                    )
                else:
                    yield piece

    async def _retrieve(self, question: Question, clock: _Clock) -> Retrieved:
        if not question.strategy.retrieves:
            return Retrieved()
        base_model = await self._current_base_model(clock)
        wanted = question.retrieval.base_model
        if wanted and wanted != base_model:
            raise BaseModelMismatchError(
                f"the request asks for adapters of {wanted!r}; this server runs {base_model!r}. "
                "Leave retrieval.base_model empty, or ask a server of that model",
                base_model=base_model,
            )
        options = replace(question.retrieval, base_model=base_model)
        try:
            return await self._retrieval.retrieve(question.prompt, options, clock.remaining_s())
        except InvalidArgumentError as error:
            raise _as_asked(error) from error

    async def _current_base_model(self, clock: _Clock) -> str:
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


class _Clock:
    """Seconds since the question came, and seconds it still has (None: as many as it takes)."""

    def __init__(self, timeout_s: float | None) -> None:
        self._start = time.monotonic()
        self._timeout_s = timeout_s

    def elapsed_s(self) -> float:
        return time.monotonic() - self._start

    def remaining_s(self) -> float | None:
        if self._timeout_s is None:
            return None
        remaining_s = self._timeout_s - self.elapsed_s()
        if remaining_s <= 0:
            raise DeadlineError(f"the {self._timeout_s:.1f} s given for this answer are over")
        return remaining_s
