"""The registered adapters, and the search for those most similar to a vector.

Every change gives the catalogue a new revision, and every read checks the revision first. A change made through any
replica is therefore visible to the next request of each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from infra.contract.adapter import Adapter, check_adapter_id
from infra.contract.errors import (
    AlreadyExistsError,
    ConflictError,
    FailedPreconditionError,
    NotFoundError,
    UnavailableError,
)
from infra.contract.retrieval import RetrievalStrategy, SelectionReason
from retrieval_service.catalogue.active_collection import ActiveCollection
from retrieval_service.catalogue.adapter_store import AdapterStore, with_new_revision
from retrieval_service.catalogue.filter_check import check_filter
from retrieval_service.catalogue.points import AdapterFilter, AdapterVectors
from retrieval_service.catalogue.qdrant import Qdrant
from retrieval_service.catalogue.results import AdapterPage, LookupResult, SearchResult
from retrieval_service.catalogue.snapshot import CatalogueSnapshot, SnapshotCache
from retrieval_service.catalogue.stored_examples import ExampleStore, check_size
from retrieval_service.embedders.base import FloatArray, normalise

MEMORY_VECTORS = 50_000  # about 390 MiB at 2048 dimensions, in every replica
_UPDATE_ATTEMPTS = 5  # optimistic updates of one adapter that collide this often are reported to the caller
_STALE_PAUSE_S = 1.0  # searches within this time of a failure do not wait for Qdrant again


class Catalogue:
    """The adapters of one embedder. Safe for threads, and for processes that share a Qdrant server."""

    def __init__(
        self,
        qdrant: Qdrant,
        collection: str,
        *,
        dim: int,
        fingerprint: str,
        memory_vectors: int = MEMORY_VECTORS,
        stale_reads: bool = False,
        store_examples: bool = True,
    ) -> None:
        """Open or create the catalogue called `collection`.

        A catalogue of at most `memory_vectors` example vectors is searched in memory; a larger one by Qdrant, by
        centroid only. With `stale_reads`, reads return the last known state while Qdrant is unreachable. With
        `store_examples`, the prompts that adapters are registered with are stored for later re-indexing.

        Raises ConfigurationError if it holds vectors of another embedder or was not created by this service.
        """
        self._qdrant = qdrant
        self._stale_reads = stale_reads
        self._store_examples = store_examples
        self._snapshots = SnapshotCache(memory_vectors)
        self._pause_ends = 0.0  # time.monotonic(); written by any thread, and a lost write costs one more attempt
        self._collection = ActiveCollection(qdrant, collection, fingerprint=fingerprint, dim=dim)
        if stale_reads:
            with self._collection.reading() as (store, info):
                self._snapshots.refresh(store.client, info)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the embedder whose vectors the catalogue holds."""
        return self._collection.fingerprint

    @property
    def stores_examples(self) -> bool:
        """Whether the prompts that adapters are registered with are stored."""
        return self._store_examples

    def create(self, adapter: Adapter, vectors: AdapterVectors, prompts: Sequence[Any] = ()) -> Adapter:
        """Store a new adapter and the encoded prompts of its examples; return it as stored.

        Raises:
            AlreadyExistsError: the id is taken.
            InvalidArgumentError: the prompts are too large to store.
        """
        self._check_size(prompts)
        stored = with_new_revision(adapter, vectors)
        with self._collection.writing() as store:
            if store.get(adapter.adapter_id) is None:
                store.insert(stored, vectors, self._examples_revision(stored, prompts))
            # Bump even if the adapter exists: its writer may have died before bumping.
            store.bump_revision()
            existing = store.get(adapter.adapter_id)
            if existing is None or existing.revision != stored.revision:
                raise already_exists(adapter, existing)
            self._put_examples(store, stored, prompts)
        return stored

    def update(
        self,
        adapter_id: str,
        change: Callable[[Adapter], Adapter],
        vectors: AdapterVectors | None = None,
        expected_revision: str = "",
        prompts: Sequence[Any] = (),
    ) -> Adapter:
        """Store `change(adapter)` under a new revision, with new example vectors if given; return it as stored.

        Raises:
            NotFoundError: the adapter does not exist.
            ConflictError: `expected_revision` is outdated, or concurrent updates won every attempt.
            InvalidArgumentError: the prompts are too large to store.
        """
        self._check_size(prompts)
        for _ in range(_UPDATE_ATTEMPTS):
            with self._collection.writing() as store:
                before = store.get(adapter_id)
                if before is None:
                    raise _not_found(adapter_id)
                if expected_revision and before.revision != expected_revision:
                    break
                stored = with_new_revision(change(before), vectors)
                store.replace(stored, vectors, before.revision, self._examples_revision(stored, prompts))
                store.bump_revision()
                after = store.get(adapter_id)
                if after is not None and after.revision == stored.revision:
                    if vectors is not None:
                        self._put_examples(store, stored, prompts)
                    return stored
        raise ConflictError(
            f"adapter {adapter_id!r} was changed by another caller; read it again and repeat the update",
            adapter_id=adapter_id,
        )

    def delete(self, adapter_id: str) -> None:
        """Delete an adapter with its vectors and examples. Raises NotFoundError."""
        check_adapter_id(adapter_id)
        with self._collection.writing() as store:
            existed = store.get(adapter_id) is not None
            if existed:
                store.delete([adapter_id])
                self._examples(store).put(adapter_id, ())
            store.bump_revision()
        if not existed:
            raise _not_found(adapter_id)

    def get(self, adapter_id: str) -> Adapter:
        """Return an adapter. Raises NotFoundError."""
        return self.look_up(adapter_id).adapter

    def exists(self, adapter_id: str) -> bool:
        """Return whether an adapter has that id."""
        with self._collection.reading() as (store, _):
            return store.get(adapter_id) is not None

    def look_up(self, adapter_id: str, *, with_vectors: bool = False) -> LookupResult:
        """Return an adapter, with the vectors of its examples if requested. Raises NotFoundError."""
        check_adapter_id(adapter_id)
        adapter, vectors, stale = None, np.zeros((0, self._collection.dim), np.float32), False
        try:
            with self._collection.reading() as (store, _):
                entry = store.get_with_vectors(adapter_id) if with_vectors else None
                adapter = store.get(adapter_id) if entry is None else entry.adapter
        except UnavailableError as error:
            entry, stale = self._stale_snapshot(error).entries.get(adapter_id), True
            adapter = entry.adapter if entry is not None else None
        if adapter is None:
            raise _not_found(adapter_id)
        if with_vectors and entry is not None:
            vectors = entry.vectors
        return LookupResult(adapter, vectors, stale)

    def page(self, adapter_filter: AdapterFilter, size: int, after: str = "") -> AdapterPage:
        """Return the first `size` matching adapters, by id, whose ids come after `after`."""
        try:
            with self._collection.reading() as (store, info):
                ids = sorted(header.adapter_id for header in store.headers(adapter_filter))
                following = [adapter_id for adapter_id in ids if adapter_id > after]
                adapters = store.get_many(following[:size])
            return AdapterPage(tuple(adapters), len(ids), len(following) > size, info.revision)
        except UnavailableError as error:
            snapshot = self._stale_snapshot(error)
            matching = [adapter for adapter in snapshot.adapters if adapter_filter.matches(adapter)]
            rest = [adapter for adapter in matching if adapter.adapter_id > after]
            return AdapterPage(tuple(rest[:size]), len(matching), len(rest) > size, snapshot.info.revision, stale=True)

    def search(
        self,
        vectors: FloatArray,
        adapter_filter: AdapterFilter,
        top_k: int,
        strategy: RetrievalStrategy = RetrievalStrategy.CENTROID,
    ) -> SearchResult:
        """Return the `top_k` matching adapters most similar to each vector of [n, dim].

        Raises:
            InvalidArgumentError: the filter includes an adapter, or names a kind or tag, that the catalogue lacks.
            FailedPreconditionError: the strategy needs all vectors in memory and they are too many.
        """
        snapshot, stale = self._current_snapshot()
        if snapshot is not None:
            matches = snapshot.search(normalise(vectors), adapter_filter, top_k, strategy)
            reason = None if any(matches) else _why_empty(snapshot, adapter_filter.base_model)
            return SearchResult(matches, snapshot.info.revision, stale, reason)
        if strategy is not RetrievalStrategy.CENTROID:
            raise FailedPreconditionError(
                f"the catalogue holds more than {self._snapshots.max_vectors} example vectors, too many for strategy "
                f"{strategy.value!r}; use 'centroid', or raise --memory-vectors"
            )
        return self._search_in_qdrant(vectors, adapter_filter, top_k)

    def close(self) -> None:
        """Release the folder or the connections."""
        self._qdrant.close()

    def _search_in_qdrant(self, vectors: FloatArray, adapter_filter: AdapterFilter, top_k: int) -> SearchResult:
        with self._collection.reading() as (store, info):
            matches = store.search_centroids(vectors, adapter_filter, top_k)
            if len(store.get_many(adapter_filter.include)) < len(set(adapter_filter.include)) or not any(matches):
                check_filter(adapter_filter, store.get_many([header.adapter_id for header in store.headers()]))
            if any(matches):
                return SearchResult(matches, info.revision)
            of_model = AdapterFilter(base_model=adapter_filter.base_model)
            model_known = next(store.headers(of_model), None) is not None
            reason = SelectionReason.NO_ADAPTERS_ALLOWED if model_known else SelectionReason.NO_ADAPTERS_OF_MODEL
            return SearchResult(matches, info.revision, reason=reason)

    def _current_snapshot(self) -> tuple[CatalogueSnapshot | None, bool]:
        """Return the snapshot (None: too large for memory) and whether it may be out of date."""
        latest = self._snapshots.latest
        if latest is not None and time.monotonic() < self._pause_ends:
            return latest, True
        try:
            with self._collection.reading() as (store, info):
                return self._snapshots.refresh(store.client, info), False
        except UnavailableError as error:
            snapshot = self._stale_snapshot(error)
            self._pause_ends = time.monotonic() + _STALE_PAUSE_S
            return snapshot, True

    def _stale_snapshot(self, error: UnavailableError) -> CatalogueSnapshot:
        """Return the last known state. Raises `error` if there is none or stale reads are off."""
        snapshot = self._snapshots.latest
        if snapshot is None or not self._stale_reads:
            raise error
        return snapshot

    def _check_size(self, prompts: Sequence[Any]) -> None:
        if self._qdrant.shared and self._store_examples:  # a folder has no limit
            check_size(prompts)

    def _examples_revision(self, stored: Adapter, prompts: Sequence[Any]) -> str:
        return stored.revision if prompts and self._store_examples else ""

    def _put_examples(self, store: AdapterStore, stored: Adapter, prompts: Sequence[Any]) -> None:
        self._examples(store).put(stored.adapter_id, prompts if self._store_examples else (), stored.revision)

    def _examples(self, store: AdapterStore) -> ExampleStore:
        return ExampleStore(store.client, self._collection.alias)


def already_exists(adapter: Adapter, existing: Adapter | None) -> AlreadyExistsError:
    """Return the error for an id that is taken; it names both checkpoints if they differ."""
    if existing is not None and existing.checkpoint_uri != adapter.checkpoint_uri:
        reason = (
            f", taken by another checkpoint, {existing.checkpoint_uri!r}; this one is {adapter.checkpoint_uri!r}: "
            "choose another id, or update or delete that adapter"
        )
    else:
        reason = ": update or delete it, or choose another id"
    return AlreadyExistsError(f"adapter {adapter.adapter_id!r} exists already{reason}", adapter_id=adapter.adapter_id)


def _why_empty(snapshot: CatalogueSnapshot, base_model: str) -> SelectionReason:
    """Return why no adapter matches a filter with this base model ("": any)."""
    if not snapshot.adapters:
        return SelectionReason.EMPTY_CATALOGUE
    if base_model and all(adapter.base_model != base_model for adapter in snapshot.adapters):
        return SelectionReason.NO_ADAPTERS_OF_MODEL
    return SelectionReason.NO_ADAPTERS_ALLOWED


def _not_found(adapter_id: str) -> NotFoundError:
    return NotFoundError(
        f"there is no adapter {adapter_id!r} in the catalogue; list the adapters to see which exist",
        adapter_id=adapter_id,
    )
