"""An in-memory copy of the catalogue: searched without Qdrant, refreshed by reading only what has changed."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from qdrant_client import QdrantClient

from infra.contract.adapter import Adapter
from infra.contract.retrieval import RetrievalStrategy
from retrieval_service.catalogue.adapter_store import AdapterHeader, AdapterStore, AdapterWithVectors
from retrieval_service.catalogue.collections import CollectionInfo
from retrieval_service.catalogue.filter_check import check_filter
from retrieval_service.catalogue.points import AdapterFilter, ScoredAdapter
from retrieval_service.embedders.base import FloatArray
from retrieval_service.strategies.examples import ExampleSet, IntArray
from retrieval_service.strategies.ranking import ranking
from retrieval_service.strategies.scale import Similarities
from retrieval_service.strategies.scatter import deciding_kinds, scatters

# A writer that dies between a change and its new revision leaves the revision stale. All headers are therefore compared
# this often regardless of the revision. It bounds how long such a change stays unseen, at one scroll per interval.
_FULL_CHECK_INTERVAL_S = 30.0
_FITTED_BY_KIND = (RetrievalStrategy.CALIBRATED, RetrievalStrategy.TWO_COVARIANCE)
_MAX_CACHED_FILTERS = 64  # filters come from callers, so the cache must be bounded


@dataclass(eq=False)
class _LazyFit:
    """A strategy that is fitted on first use. Requests for other strategies do not wait for it."""

    lock: threading.Lock = field(default_factory=threading.Lock)  # Guards: similarities.
    similarities: Similarities | None = None


@dataclass(eq=False)
class CatalogueSnapshot:
    """One revision of the catalogue: its adapters by id, and the strategies, fitted on first use.

    `calibrated` is fitted once for each kind with enough examples to decide which scatter is ignored; there are at most
    ten of those, however many kinds are requested.
    """

    info: CollectionInfo
    entries: dict[str, AdapterWithVectors]
    adapters: tuple[Adapter, ...]
    examples: ExampleSet
    _fits: dict[tuple[RetrievalStrategy, str], _LazyFit] = field(default_factory=dict)
    _columns: dict[AdapterFilter, IntArray] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)  # Guards: _fits.

    @classmethod
    def build(cls, info: CollectionInfo, entries: dict[str, AdapterWithVectors]) -> CatalogueSnapshot:
        """Return the revision that consists of these adapters."""
        ordered = [entries[adapter_id] for adapter_id in sorted(entries)]
        vectors = [entry.vectors for entry in ordered] or [np.zeros((0, info.dim), np.float32)]
        examples = ExampleSet(
            tuple(entry.adapter.adapter_id for entry in ordered),
            tuple(entry.adapter.kind for entry in ordered),
            np.concatenate(vectors),
            np.repeat(np.arange(len(ordered)), [len(entry.vectors) for entry in ordered]).astype(np.int64),
        )
        return cls(info, entries, tuple(entry.adapter for entry in ordered), examples)

    def search(
        self, vectors: FloatArray, adapter_filter: AdapterFilter, top_k: int, strategy: RetrievalStrategy
    ) -> tuple[tuple[ScoredAdapter, ...], ...]:
        """Return the `top_k` most similar matching adapters for each vector of [n, dim].

        Raises InvalidArgumentError if the filter names an adapter, kind or tag that the catalogue lacks.
        """
        columns = self._matching_columns(adapter_filter)
        if not len(columns):
            return ((),) * len(vectors)
        scores = self._fitted(strategy, adapter_filter.kind).scores(vectors)
        similarities, log_weights = scores.similarities[:, columns], scores.log_weights[:, columns]
        return tuple(
            tuple(
                ScoredAdapter(
                    self.adapters[columns[index]], float(similarities[row, index]), float(log_weights[row, index])
                )
                for index in order
            )
            for row, order in enumerate(ranking(similarities, top_k))
        )

    def _fitted(self, strategy: RetrievalStrategy, kind: str) -> Similarities:
        depends_on_kind = strategy in _FITTED_BY_KIND and kind in self._deciding_kinds
        key = (strategy, kind if depends_on_kind else "")
        with self._lock:
            fit = self._fits.setdefault(key, _LazyFit())
        with fit.lock:
            if fit.similarities is None:
                fit.similarities = Similarities(strategy, self.examples, key[1])
            return fit.similarities

    @cached_property
    def _deciding_kinds(self) -> frozenset[str]:
        return frozenset(deciding_kinds(scatters(self.examples))) if self.adapters else frozenset()

    def _matching_columns(self, adapter_filter: AdapterFilter) -> IntArray:
        # Without a lock: two threads may compute the same columns, which is harmless.
        columns = self._columns.get(adapter_filter)
        if columns is None:
            check_filter(adapter_filter, self.adapters)
            matching = [index for index, adapter in enumerate(self.adapters) if adapter_filter.matches(adapter)]
            columns = np.array(matching, np.int64)
            if len(self._columns) < _MAX_CACHED_FILTERS:
                self._columns[adapter_filter] = columns
        return columns


class SnapshotCache:
    """Holds the latest snapshot of a catalogue of at most `max_vectors` example vectors."""

    def __init__(self, max_vectors: int) -> None:
        self.max_vectors = max_vectors
        self.latest: CatalogueSnapshot | None = None
        # Guards: latest, _too_large, _checked_at. Held while Qdrant is read, so that a change is read once.
        self._lock = threading.Lock()
        self._too_large: CollectionInfo | None = None
        self._checked_at = 0.0

    def refresh(self, client: QdrantClient, info: CollectionInfo) -> CatalogueSnapshot | None:
        """Return a snapshot of `info` or newer, reading only what has changed; None if the catalogue is too large.

        `info` must be read before this call: a change after that has another revision and is picked up by the next
        refresh.
        """
        with self._lock:
            latest = self.latest
            if time.monotonic() - self._checked_at < _FULL_CHECK_INTERVAL_S:
                if latest is not None and latest.info == info:
                    return latest
                if self._too_large == info:
                    return None
            store = AdapterStore(client, info.collection)
            headers = list(store.headers())
            self._checked_at, self._too_large = time.monotonic(), None
            if sum(header.example_count for header in headers) > self.max_vectors:
                self.latest, self._too_large = None, info
                return None
            self.latest = _updated(latest, info, store, headers)
            return self.latest


def _updated(
    latest: CatalogueSnapshot | None, info: CollectionInfo, store: AdapterStore, headers: list[AdapterHeader]
) -> CatalogueSnapshot:
    """Return the snapshot with these headers, reusing the unchanged entries of `latest`."""
    if latest is not None and latest.info.collection != info.collection:
        latest = None
    known = latest.entries if latest is not None else {}
    unchanged = {header.adapter_id for header in headers if _is_unchanged(header, known)}
    if latest is not None and len(unchanged) == len(headers) == len(known):
        return replace(latest, info=info)
    entries = {adapter_id: known[adapter_id] for adapter_id in unchanged}
    changed = [header.point_id for header in headers if header.adapter_id not in unchanged]
    entries |= {entry.adapter.adapter_id: entry for entry in store.read_vectors(changed)}
    return CatalogueSnapshot.build(info, entries)


def _is_unchanged(header: AdapterHeader, known: dict[str, AdapterWithVectors]) -> bool:
    entry = known.get(header.adapter_id)
    return entry is not None and entry.adapter.revision == header.revision
