"""Retrieval: prompts -> the adapters whose training data resembles them, with weights."""

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
    """Retrieval options with all defaults resolved. `min_similarity` -1 keeps every match."""

    adapter_filter: AdapterFilter
    top_k: int
    weighting: Weighting
    temperature: float
    min_similarity: float
    strategy: RetrievalStrategy = RetrievalStrategy.CENTROID


@dataclass(frozen=True)
class RetrievalDefaults:
    """Defaults of options that a request leaves unset, and the limit of top_k."""

    top_k: int = 3
    weighting: Weighting = Weighting.SOFTMAX
    temperature: float = 0.05
    min_similarity: float = -1.0
    max_top_k: int = 64
    strategy: RetrievalStrategy = RetrievalStrategy.CENTROID

    def query(self, options: RetrievalOptions) -> Query:
        """Return the options with defaults filled in. Raises InvalidArgumentError if top_k exceeds the limit."""
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
class RetrievalResult:
    """One selection per prompt, in order, and the revision of the catalogue that was searched.

    `stale`: Qdrant cannot be reached, and the last known catalogue was searched.
    """

    selections: tuple[Selection, ...]
    catalogue_revision: str
    timings: RetrievalTimings
    stale: bool = False


class Retriever:
    """Embeds prompts, searches the catalogue, and weights the matches. Called on: any thread."""

    def __init__(self, embedder: Embedder, catalogue: Catalogue, defaults: RetrievalDefaults) -> None:
        self._embedder = embedder
        self._catalogue = catalogue
        self._defaults = defaults

    def query(self, options: RetrievalOptions) -> Query:
        """Return the options with the server's defaults filled in. Raises InvalidArgumentError."""
        return self._defaults.query(options)

    def retrieve(self, prompts: Sequence[Prompt], query: Query) -> RetrievalResult:
        """Return the adapters of each prompt, with weights.

        An empty selection has a reason: no adapter passed the filter, or none is similar enough.

        Raises:
            InvalidArgumentError: a prompt or an option is invalid; the field path starts with "prompts" or "options".
            FailedPreconditionError: the catalogue is too large for the strategy.
            UnavailableError: the embedder or Qdrant cannot be reached.
        """
        start = time.monotonic()
        with field_path("prompts"):
            vectors = self._embedder.embed(prompts)
        embedded = time.monotonic()
        with field_path("options"):
            result = self._catalogue.search(vectors, query.adapter_filter, query.top_k, query.strategy)
        if result.reason is not None:
            selections = (Selection(reason=result.reason),) * len(prompts)
        else:
            selections = tuple(select(matches, query) for matches in result.matches)
        timings = RetrievalTimings(embedded - start, time.monotonic() - embedded)
        return RetrievalResult(selections, result.revision, timings, result.stale)


def select(candidates: Sequence[ScoredAdapter], query: Query) -> Selection:
    """Drop candidates below the minimum similarity, and weight the rest."""
    similar = [candidate for candidate in candidates if candidate.similarity >= query.min_similarity]
    if not similar:
        return Selection(reason=SelectionReason.BELOW_MINIMUM_SIMILARITY)
    weights = weigh([candidate.similarity for candidate in similar], query.weighting, query.temperature)
    return Selection(
        tuple(
            Match(candidate.adapter, candidate.similarity, weight)
            for candidate, weight in zip(similar, weights, strict=True)
        )
    )
