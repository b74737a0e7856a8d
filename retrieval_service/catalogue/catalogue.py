"""The adapters that are known, and the search for those that fit: in memory, or by Qdrant where there are too many.

Every change gives the catalogue a new revision; every read looks at the revision first, so a change through any replica
is seen by the next request of each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from qdrant_client import QdrantClient

from infra.contract.adapter import Adapter, check_adapter_id
from infra.contract.errors import (
    AlreadyExistsError,
    ConflictError,
    FailedPreconditionError,
    NotFoundError,
    UnavailableError,
)
from infra.contract.retrieval import RetrievalStrategy, SelectionReason
from retrieval_service.catalogue.adapter_store import Store, stamped
from retrieval_service.catalogue.collections import Head, head_of, open_collection
from retrieval_service.catalogue.points import AdapterFilter, AdapterVectors, Found
from retrieval_service.catalogue.qdrant import Qdrant
from retrieval_service.catalogue.snapshot import Known, Memory
from retrieval_service.catalogue.stored_examples import KeptPrompts, check_size
from retrieval_service.embedders.base import FloatArray, normalise

MEMORY_VECTORS = 50_000
_UPDATE_ATTEMPTS = 5
_STALE_PAUSE_S = 1.0


@dataclass(frozen=True)
class SearchResult:
    """What was found for each vector, most similar first, the revision searched, and whether it may be out of date.

    `reason` says why no adapter passed the filter; None when at least one did.
    """

    found: tuple[tuple[Found, ...], ...]
    revision: str
    stale: bool = False
    reason: SelectionReason | None = None


@dataclass(frozen=True)
class Page:
    """Some adapters, by id; `total` counts all that match; more of them follow if `more`."""

    adapters: tuple[Adapter, ...]
    total: int
    more: bool
    revision: str
    stale: bool = False


@dataclass(frozen=True, eq=False)
class LookedUp:
    """An adapter, the vectors of its examples [n, dim] (none unless wanted), and whether it may be out of date."""

    adapter: Adapter
    vectors: FloatArray
    stale: bool


class Catalogue:
    """Registered adapters. Safe for threads, and for several processes that share a Qdrant server."""

    def __init__(
        self,
        qdrant: Qdrant,
        collection: str,
        *,
        dim: int,
        fingerprint: str,
        memory_vectors: int = MEMORY_VECTORS,
        stale_reads: bool = False,
        keep_prompts: bool = True,
    ) -> None:
        """Open the catalogue of that name, or make it.

        One of at most `memory_vectors` example vectors is searched in memory; a larger one by Qdrant, and by its
        centroids alone. With `stale_reads` the last state known is read while Qdrant cannot be reached. With
        `keep_prompts` the examples that adapters are registered by are kept, for other embedders to come.

        Raises ConfigurationError when it holds vectors of another embedder, or is none of ours.
        """
        self._qdrant = qdrant
        self._alias = collection
        self._stale_reads = stale_reads
        self._keep_prompts = keep_prompts
        self._memory = Memory(memory_vectors)
        self._pause_ends = 0.0
        with qdrant.session() as client:
            self._head = open_collection(client, collection, fingerprint, dim, indexed=qdrant.shared)
            if stale_reads:
                self._memory.at(client, self._head)

    @property
    def fingerprint(self) -> str:
        """Of the embedder that makes this catalogue's vectors."""
        return self._head.fingerprint

    @property
    def keeps_prompts(self) -> bool:
        """Whether the examples that adapters are registered by are kept."""
        return self._keep_prompts

    def create(self, adapter: Adapter, vectors: AdapterVectors, prompts: Sequence[Any] = ()) -> Adapter:
        """Store a new adapter, and the encoded prompts of its examples; return it as stored.

        Raises AlreadyExistsError, and InvalidArgumentError when the prompts are too large to keep.
        """
        self._check_keepable(prompts)
        stored = stamped(adapter, vectors)
        with self._writing() as store:
            if store.read(adapter.adapter_id) is None:
                store.insert(stored, vectors, self._kept_as(stored, prompts))
            store.touch()  # also when it is there: the one who stored it may have failed before this
            there = store.read(adapter.adapter_id)
            if there is None or there.revision != stored.revision:
                raise already_exists(adapter, there)
            self._keep(store, stored, prompts)
        return stored

    def update(
        self,
        adapter_id: str,
        change: Callable[[Adapter], Adapter],
        vectors: AdapterVectors | None = None,
        expected_revision: str = "",
        prompts: Sequence[Any] = (),
    ) -> Adapter:
        """Store `change(adapter)` under a new revision, with new example vectors if there are; return it as stored.

        Raises NotFoundError; ConflictError when `expected_revision` is not the adapter's any more;
        InvalidArgumentError when the encoded prompts of new examples are too large to keep.
        """
        self._check_keepable(prompts)
        for _ in range(_UPDATE_ATTEMPTS):
            with self._writing() as store:
                before = store.read(adapter_id)
                if before is None:
                    raise _not_found(adapter_id)
                if expected_revision and before.revision != expected_revision:
                    break
                stored = stamped(change(before), vectors)
                store.replace(stored, vectors, before.revision, self._kept_as(stored, prompts))
                store.touch()
                there = store.read(adapter_id)
                if there is not None and there.revision == stored.revision:
                    if vectors is not None:
                        self._keep(store, stored, prompts)
                    return stored
        raise ConflictError(
            f"adapter {adapter_id!r} was changed by someone else; get it again and repeat", adapter_id=adapter_id
        )

    def delete(self, adapter_id: str) -> None:
        """Remove an adapter with its vectors. Raises NotFoundError."""
        check_adapter_id(adapter_id)
        with self._writing() as store:
            there = store.read(adapter_id) is not None
            if there:
                store.delete([adapter_id])
                KeptPrompts(store.client, self._alias).put(adapter_id, ())
            store.touch()
        if not there:
            raise _not_found(adapter_id)

    def get(self, adapter_id: str) -> Adapter:
        """Return an adapter. Raises NotFoundError."""
        return self.look_up(adapter_id).adapter

    def exists(self, adapter_id: str) -> bool:
        """Return whether there is an adapter of that id."""
        with self._reading() as (store, _):
            return store.read(adapter_id) is not None

    def look_up(self, adapter_id: str, *, with_vectors: bool = False) -> LookedUp:
        """Return an adapter, with the vectors of its examples where they are wanted. Raises NotFoundError."""
        check_adapter_id(adapter_id)
        adapter, vectors, stale = None, np.zeros((0, self._head.dim), np.float32), False
        try:
            with self._reading() as (store, _):
                entry = store.entry(adapter_id) if with_vectors else None
                adapter = store.read(adapter_id) if entry is None else entry.adapter
        except UnavailableError as error:
            entry, stale = self._last_known(error).entries.get(adapter_id), True
            adapter = entry.adapter if entry is not None else None
        if adapter is None:
            raise _not_found(adapter_id)
        if with_vectors and entry is not None:
            vectors = entry.vectors
        return LookedUp(adapter, vectors, stale)

    def page(self, wanted: AdapterFilter, size: int, after: str = "") -> Page:
        """Return the first `size` adapters, by id, whose ids come after `after`."""
        try:
            with self._reading() as (store, head):
                ids = sorted(card.adapter_id for card in store.cards(wanted))
                later = [one for one in ids if one > after]
                adapters = store.read_many(later[:size])
            return Page(tuple(adapters), len(ids), len(later) > size, head.revision)
        except UnavailableError as error:
            known = self._last_known(error)
            matching = [one for one in known.adapters if wanted.passes(one)]
            rest = [one for one in matching if one.adapter_id > after]
            return Page(tuple(rest[:size]), len(matching), len(rest) > size, known.head.revision, stale=True)

    def search(
        self,
        vectors: FloatArray,
        wanted: AdapterFilter,
        top_k: int,
        strategy: RetrievalStrategy = RetrievalStrategy.CENTROID,
    ) -> SearchResult:
        """Return the `top_k` adapters most similar to each vector of [n, dim].

        Raises FailedPreconditionError for a strategy that needs all vectors in memory, when there are too many.
        """
        known, stale = self._current()
        if known is not None:
            found = known.search(normalise(vectors), wanted, top_k, strategy)
            reason = None if any(found) else _why_empty(known, wanted.base_model)
            return SearchResult(found, known.head.revision, stale, reason)
        if strategy is not RetrievalStrategy.CENTROID:
            raise FailedPreconditionError(
                f"the catalogue holds more than {self._memory.limit} example vectors, too many for strategy "
                f"{strategy.value!r}; use 'centroid', or raise --memory-vectors"
            )
        with self._reading() as (store, head):
            found = store.nearest(vectors, wanted, top_k)
            if any(found):
                return SearchResult(found, head.revision)
            of_model = any(True for _ in store.cards(AdapterFilter(base_model=wanted.base_model)))
            reason = SelectionReason.NO_ADAPTERS_ALLOWED if of_model else SelectionReason.NO_ADAPTERS_OF_MODEL
            return SearchResult(found, head.revision, reason=reason)

    def close(self) -> None:
        """Let go of the folder or the connections."""
        self._qdrant.close()

    def _current(self) -> tuple[Known | None, bool]:
        """Return the catalogue in memory (None: too large for it), and whether it may be out of date."""
        last = self._memory.last
        if last is not None and time.monotonic() < self._pause_ends:
            return last, True
        try:
            with self._qdrant.session() as client:
                return self._memory.at(client, self._here(client)), False
        except UnavailableError as error:
            known = self._last_known(error)
            self._pause_ends = time.monotonic() + _STALE_PAUSE_S  # so that not every request waits for Qdrant
            return known, True

    def _last_known(self, error: UnavailableError) -> Known:
        """Return the last state known. Raises `error` when there is none, or it is not to be served."""
        known = self._memory.last
        if known is None or not self._stale_reads:
            raise error
        return known

    @contextmanager
    def _reading(self) -> Iterator[tuple[Store, Head]]:
        with self._qdrant.session() as client:
            head = self._here(client)
            yield Store(client, head.collection), head

    @contextmanager
    def _writing(self) -> Iterator[Store]:
        """Give the collection in use. Raises FailedPreconditionError when it is another embedder's by now."""
        with self._qdrant.session() as client:
            head = head_of(client, self._alias)
            if not head.made_by(self._head.fingerprint, self._head.dim):
                raise FailedPreconditionError(
                    f"the catalogue was re-indexed with [{head.fingerprint}], this server embeds with "
                    f"[{self._head.fingerprint}]: it still answers but takes no changes; restart it with the new one"
                )
            self._head = head
            yield Store(client, head.collection)

    def _check_keepable(self, prompts: Sequence[Any]) -> None:
        if self._qdrant.shared and self._keep_prompts:
            check_size(prompts)

    def _kept_as(self, stored: Adapter, prompts: Sequence[Any]) -> str:
        return stored.revision if prompts and self._keep_prompts else ""

    def _keep(self, store: Store, stored: Adapter, prompts: Sequence[Any]) -> None:
        kept = KeptPrompts(store.client, self._alias)
        kept.put(stored.adapter_id, prompts if self._keep_prompts else (), stored.revision)

    def _here(self, client: QdrantClient) -> Head:
        """Return the head of this embedder's collection: the one in use, or the last that was."""
        head = head_of(client, self._alias)
        if not head.made_by(self._head.fingerprint, self._head.dim):
            return head_of(client, self._head.collection)
        self._head = head
        return head


def already_exists(wanted: Adapter, there: Adapter | None) -> AlreadyExistsError:
    """Return the error for an id that is taken, which says whether it is by the same checkpoint."""
    if there is not None and there.checkpoint_uri != wanted.checkpoint_uri:
        taken = f"by another checkpoint, {there.checkpoint_uri!r}; this one is {wanted.checkpoint_uri!r}: "
        remedy = "choose another id, or update or delete that adapter"
    else:
        taken, remedy = "", "update or delete it, or choose another id"
    return AlreadyExistsError(
        f"adapter {wanted.adapter_id!r} exists already{': ' if not taken else ', taken ' + taken}{remedy}",
        adapter_id=wanted.adapter_id,
    )


def _why_empty(known: Known, base_model: str) -> SelectionReason:
    """Return why no adapter passed a filter that names this base model ("": any)."""
    if not known.adapters:
        return SelectionReason.EMPTY_CATALOGUE
    if base_model and all(adapter.base_model != base_model for adapter in known.adapters):
        return SelectionReason.NO_ADAPTERS_OF_MODEL
    return SelectionReason.NO_ADAPTERS_ALLOWED


def _not_found(adapter_id: str) -> NotFoundError:
    return NotFoundError(
        f"there is no adapter {adapter_id!r} in the catalogue; list the adapters to see which there are",
        adapter_id=adapter_id,
    )
