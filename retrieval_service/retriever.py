"""Prompts -> the adapters whose training data resembles them, with weights."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from infra.contract.errors import InvalidArgumentError, field_path
from infra.contract.prompt import Prompt
from infra.contract.retrieval import (
    Match,
    RetrievalOptions,
    RetrievalStrategy,
    RetrievalTimings,
    Selection,
    SelectionReason,
    Weighting,
)
from retrieval_service.catalogue.catalogue import Catalogue
from retrieval_service.catalogue.points import AdapterFilter, ScoredAdapter
from retrieval_service.embedders.base import Embedder
from retrieval_service.weighting import weigh


@dataclass(frozen=True)
class Query:
    """What to retrieve, nothing left open. `min_similarity` -1 keeps everything."""

    wanted: AdapterFilter
    top_k: int
    weighting: Weighting
    temperature: float
    min_similarity: float
    strategy: RetrievalStrategy = RetrievalStrategy.CENTROID


@dataclass(frozen=True)
class RetrievalDefaults:
    """What callers get who do not say, and how many adapters they may ask for."""

    top_k: int = 3
    weighting: Weighting = Weighting.SOFTMAX
    temperature: float = 0.05
    min_similarity: float = -1.0
    max_top_k: int = 64
    strategy: RetrievalStrategy = RetrievalStrategy.CENTROID

    def query(self, options: RetrievalOptions) -> Query:
        """Return the options with the defaults filled in.

        Raises InvalidArgumentError for a top_k over the limit.
        """
        top_k = self.top_k if options.top_k is None else options.top_k
        if top_k > self.max_top_k:
            raise InvalidArgumentError("top_k", f"must be at most {self.max_top_k} on this server, got {top_k}")
        return Query(
            AdapterFilter(options.base_model, options.kind, options.tags, options.include, options.exclude),
            top_k,
            options.weighting or self.weighting,
            self.temperature if options.temperature is None else options.temperature,
            self.min_similarity if options.min_similarity is None else options.min_similarity,
            options.strategy or self.strategy,
        )


@dataclass(frozen=True)
class Retrieval:
    """A selection a prompt, in their order, and the revision of the catalogue that was searched.

    `stale`: Qdrant could not be reached, and the last known catalogue was searched.
    """

    selections: tuple[Selection, ...]
    catalogue_revision: str
    timings: RetrievalTimings
    stale: bool = False


class Retriever:
    """Embed, search, weigh."""

    def __init__(self, embedder: Embedder, catalogue: Catalogue, defaults: RetrievalDefaults) -> None:
        self._embedder = embedder
        self._catalogue = catalogue
        self._defaults = defaults

    def query(self, options: RetrievalOptions) -> Query:
        """Return what the options ask for. Raises InvalidArgumentError."""
        return self._defaults.query(options)

    def retrieve(self, prompts: Sequence[Prompt], query: Query) -> Retrieval:
        """Return each prompt's adapters.

        A selection without matches says why: no adapter passed the filters, or none was similar enough.

        Raises:
            InvalidArgumentError: a prompt cannot be embedded; its path starts at "prompts".
            FailedPreconditionError: the catalogue is too large for the strategy.
            UnavailableError: the embedder or Qdrant cannot be reached.
        """
        start = time.monotonic()
        with field_path("prompts"):
            vectors = self._embedder.embed(prompts)
        embedded = time.monotonic()
        result = self._catalogue.search(vectors, query.wanted, query.top_k, query.strategy)
        if result.reason is not None:
            selections = (Selection(reason=result.reason),) * len(prompts)
        else:
            selections = tuple(select(matches, query) for matches in result.matches)
        timings = RetrievalTimings(embedded - start, time.monotonic() - embedded)
        return Retrieval(selections, result.revision, timings, result.stale)


def select(found: Sequence[ScoredAdapter], query: Query) -> Selection:
    """Drop adapters below the minimum similarity, then weigh the rest. Nothing left: the base model alone."""
    kept = [one for one in found if one.similarity >= query.min_similarity]
    if not kept:
        return Selection(reason=SelectionReason.BELOW_MINIMUM_SIMILARITY)
    weights = weigh([one.similarity for one in kept], query.weighting, query.temperature)
    return Selection(
        tuple(Match(one.adapter, one.similarity, weight) for one, weight in zip(kept, weights, strict=True))
    )
