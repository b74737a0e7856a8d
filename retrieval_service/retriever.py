"""Retrieval: the adapters whose training data resembles a prompt, with weights."""

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
from retrieval_service.settings import RetrievalDefaults
from retrieval_service.weighting import weigh


@dataclass(frozen=True)
class Query:
    """Retrieval options with all defaults filled in. `min_similarity` -1 keeps every match."""

    adapter_filter: AdapterFilter
    top_k: int
    weighting: Weighting
    temperature: float
    min_similarity: float
    strategy: RetrievalStrategy = RetrievalStrategy.CENTROID
    min_log_odds: float | None = None

    @classmethod
    def of(cls, options: RetrievalOptions, defaults: RetrievalDefaults) -> Query:
        """Return the options with the defaults filled in. Raises InvalidArgumentError if top_k is over the limit."""
        top_k = defaults.top_k if options.top_k is None else options.top_k
        if top_k > defaults.max_top_k:
            raise InvalidArgumentError("top_k", f"must be at most {defaults.max_top_k} on this server, got {top_k}")
        return cls(
            AdapterFilter(options.base_model, options.kind, options.tags, options.include, options.exclude),
            top_k,
            options.weighting or defaults.weighting,
            defaults.temperature if options.temperature is None else options.temperature,
            defaults.min_similarity if options.min_similarity is None else options.min_similarity,
            options.strategy or defaults.strategy,
            defaults.min_log_odds if options.min_log_odds is None else options.min_log_odds,
        )


@dataclass(frozen=True)
class RetrievalResult:
    """One selection per prompt, in order, and the revision of the catalogue that was searched.

    `stale`: Qdrant was unreachable, so the last known catalogue was searched.
    """

    selections: tuple[Selection, ...]
    catalogue_revision: str
    timings: RetrievalTimings
    stale: bool = False


class Retriever:
    """Embeds prompts, searches the catalogue and weighs the matches. Safe for threads."""

    def __init__(self, embedder: Embedder, catalogue: Catalogue, defaults: RetrievalDefaults) -> None:
        self._embedder = embedder
        self._catalogue = catalogue
        self._defaults = defaults

    def query(self, options: RetrievalOptions) -> Query:
        """Return the options with the defaults filled in. Raises InvalidArgumentError."""
        return Query.of(options, self._defaults)

    def retrieve(self, prompts: Sequence[Prompt], query: Query) -> RetrievalResult:
        """Return each prompt's adapters.

        A selection without matches has a reason: no adapter passed the filters, or none was similar enough.

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


def select(matches: Sequence[ScoredAdapter], query: Query) -> Selection:
    """Drop adapters below the minimum similarity, then weigh the rest. Empty: the base model alone."""
    log_odds = None
    if query.strategy is RetrievalStrategy.TWO_COVARIANCE and matches:
        log_odds = max(match.log_weight for match in matches)
        if query.min_log_odds is not None and log_odds < query.min_log_odds:
            return Selection(reason=SelectionReason.NOTHING_FITS, log_odds=log_odds)
    similar = [match for match in matches if match.similarity >= query.min_similarity]
    if not similar:
        return Selection(reason=SelectionReason.BELOW_MINIMUM_SIMILARITY, log_odds=log_odds)
    weights = weigh(
        [match.similarity for match in similar],
        query.weighting,
        query.temperature,
        [match.log_weight for match in similar],
    )
    return Selection(
        tuple(Match(match.adapter, match.similarity, weight) for match, weight in zip(similar, weights, strict=True)),
        log_odds=log_odds,
    )
