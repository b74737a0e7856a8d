"""Options and results of retrieval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from infra.contract.adapter import Adapter, check_adapter_id
from infra.contract.composition import WeightedAdapter
from infra.contract.errors import InvalidArgumentError

#: A 32-bit number on the wire.
MAX_TOP_K = 2**31 - 1


class RetrievalStrategy(StrEnum):
    """How adapters are compared with a prompt."""

    CENTROID = "centroid"
    MULTI_CENTROID = "multi_centroid"
    NEAREST_EXAMPLES = "nearest_examples"
    CALIBRATED = "calibrated"
    TWO_COVARIANCE = "two_covariance"


class Weighting(StrEnum):
    """How similarities become weights."""

    UNIFORM = "uniform"
    SOFTMAX = "softmax"
    SIMILARITY = "similarity"
    CLEAR_BEST = "clear_best"
    PROBABILITY = "probability"


@dataclass(frozen=True)
class RetrievalOptions:
    """Which adapters to retrieve and how to weight them. None: the server's default; empty: no filter."""

    top_k: int | None = None
    base_model: str = ""
    kind: str = ""
    tags: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    strategy: RetrievalStrategy | None = None
    weighting: Weighting | None = None
    temperature: float | None = None
    min_similarity: float | None = None
    min_log_odds: float | None = None

    def __post_init__(self) -> None:
        if self.top_k is not None and not 1 <= self.top_k <= MAX_TOP_K:
            raise InvalidArgumentError("top_k", f"must be at least 1 and below 2^31, got {self.top_k}")
        if self.temperature is not None and not (math.isfinite(self.temperature) and self.temperature > 0):
            raise InvalidArgumentError("temperature", f"must be finite and above 0, got {self.temperature}")
        if self.min_similarity is not None and not -1 <= self.min_similarity <= 1:
            raise InvalidArgumentError("min_similarity", f"must be in [-1, 1], got {self.min_similarity}")
        if self.min_log_odds is not None and not math.isfinite(self.min_log_odds):
            raise InvalidArgumentError("min_log_odds", f"must be finite, got {self.min_log_odds}")
        _check_ids("include", self.include)
        _check_ids("exclude", self.exclude)


@dataclass(frozen=True)
class Match:
    """One retrieved adapter: its similarity in [-1, 1], on the scale of cosines with centroids, and its weight."""

    adapter: Adapter
    similarity: float
    weight: float


@dataclass(frozen=True)
class RetrievalTimings:
    """Seconds from prompts to vectors (including the wait for the embedder), and from vectors to adapters."""

    embed_s: float
    search_s: float


class SelectionReason(StrEnum):
    """Why a selection is empty."""

    EMPTY_CATALOGUE = "empty_catalogue"
    NO_ADAPTERS_OF_MODEL = "no_adapters_of_model"
    NO_ADAPTERS_ALLOWED = "no_adapters_allowed"
    BELOW_MINIMUM_SIMILARITY = "below_minimum_similarity"
    NOTHING_FITS = "nothing_fits"


@dataclass(frozen=True)
class Selection:
    """The ranked matches of one prompt, most similar first. Empty: the base model alone should answer.

    `reason` says why retrieval returned no matches; None when it returned some, or when nothing was searched.
    `log_odds` is the natural logarithm of how much more likely the prompt is under the best match than under an adapter
    that is not registered; None for a retrieval strategy that does not tell.
    """

    matches: tuple[Match, ...] = ()
    reason: SelectionReason | None = None
    log_odds: float | None = None

    def __post_init__(self) -> None:
        if self.matches and self.reason is not None:
            raise InvalidArgumentError("reason", f"is {self.reason.value}, but the selection has matches")

    @property
    def weighted(self) -> tuple[WeightedAdapter, ...]:
        """The matches as shares of a composition, revisions included."""
        return tuple(WeightedAdapter(m.adapter.adapter_id, m.weight, m.adapter.revision) for m in self.matches)


@dataclass(frozen=True)
class CatalogueInfo:
    """The catalogue as a whole.

    `revision` changes whenever an adapter does; vectors with different `embedder_fingerprint` cannot be compared.
    `stale`: Qdrant cannot be reached, and this is the last known state.
    """

    revision: str
    embedder_fingerprint: str
    dimension: int
    adapter_count: int
    stale: bool = False


def _check_ids(name: str, ids: Sequence[str]) -> None:
    for index, adapter_id in enumerate(ids):
        check_adapter_id(adapter_id, f"{name}[{index}]")
