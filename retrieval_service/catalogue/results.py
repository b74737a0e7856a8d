"""What reading the catalogue returns. `stale` marks results that may be out of date because Qdrant is unreachable."""

from __future__ import annotations

from dataclasses import dataclass

from infra.contract.adapter import Adapter
from infra.contract.retrieval import SelectionReason
from retrieval_service.catalogue.points import ScoredAdapter
from retrieval_service.embedders.base import FloatArray


@dataclass(frozen=True)
class SearchResult:
    """The matches of each vector, by falling similarity, and the revision that was searched.

    `reason` says why no adapter matched the filter; None if at least one did.
    """

    matches: tuple[tuple[ScoredAdapter, ...], ...]
    revision: str
    stale: bool = False
    reason: SelectionReason | None = None


@dataclass(frozen=True)
class AdapterPage:
    """Adapters by id. `total` counts all matching adapters; `has_more` is set if others follow this page."""

    adapters: tuple[Adapter, ...]
    total: int
    has_more: bool
    revision: str
    stale: bool = False


@dataclass(frozen=True, eq=False)
class LookupResult:
    """An adapter and the vectors of its examples, [n, dim]; no vectors unless they were requested."""

    adapter: Adapter
    vectors: FloatArray
    stale: bool
