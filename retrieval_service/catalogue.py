"""The adapters and their vectors, in a Qdrant collection: one point an adapter.

A point's id is the uuid5 of the adapter's id; its payload is the adapter; its named vectors are `centroid`, the mean of
the adapter's examples (LoraRetriever, section 3.2), and `examples`, all of them as a multivector. The collection's
metadata holds what made the vectors, and the revision of the catalogue.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from infra.contract.adapter import Adapter, check_adapter_id
from infra.contract.errors import (
    AlreadyExistsError,
    ConfigurationError,
    ConflictError,
    NotFoundError,
)
from retrieval_service.embedders.base import FloatArray
from retrieval_service.points import (
    CENTROID,
    EXAMPLES,
    AdapterFilter,
    AdapterVectors,
    Found,
    adapter_of,
    condition,
    equals,
    point_id,
    point_of,
    ranked,
)
from retrieval_service.qdrant import Qdrant

_SCHEMA = 1
_KEYWORDS = ("adapter_id", "base_model", "kind", "tags")
_SCROLL_PAGE = 1000
_UPDATE_ATTEMPTS = 5


@dataclass(frozen=True)
class SearchResult:
    """What was found for each vector, most similar first, and the revision that was searched."""

    found: tuple[tuple[Found, ...], ...]
    revision: str


@dataclass(frozen=True)
class Page:
    """Some adapters, by id; `total` counts all that match; more of them follow if `more`."""

    adapters: tuple[Adapter, ...]
    total: int
    more: bool
    revision: str


class Catalogue:
    """Registered adapters. Safe for threads, and for several processes that share a Qdrant server."""

    def __init__(self, qdrant: Qdrant, collection: str, *, dim: int, fingerprint: str) -> None:
        """Open the collection, or make it.

        Raises ConfigurationError when it holds vectors of another embedder, or is none of ours.
        """
        self._qdrant = qdrant
        self._collection = collection
        self._dim = dim
        with qdrant.session() as client:
            if not client.collection_exists(collection):
                self._make(client, fingerprint)
            self._check(client, fingerprint)

    def create(self, adapter: Adapter, vectors: AdapterVectors) -> Adapter:
        """Store a new adapter; return it as stored. Raises AlreadyExistsError."""
        stored = _stamped(adapter, vectors)
        with self._qdrant.session() as client:
            if self._read(client, adapter.adapter_id) is None:
                point = point_of(stored, _named(vectors))
                client.upsert(self._collection, [point], update_mode=models.UpdateMode.INSERT_ONLY)
                self._touch(client)
            there = self._read(client, adapter.adapter_id)
        if there is None or there.revision != stored.revision:
            raise AlreadyExistsError(
                f"adapter {adapter.adapter_id!r} exists already; update or delete it, or choose another id",
                adapter_id=adapter.adapter_id,
            )
        return stored

    def update(
        self,
        adapter_id: str,
        change: Callable[[Adapter], Adapter],
        vectors: AdapterVectors | None = None,
        expected_revision: str = "",
    ) -> Adapter:
        """Store `change(adapter)` under a new revision, with new example vectors if there are; return it as stored.

        Raises NotFoundError; ConflictError when `expected_revision` is not the adapter's any more.
        """
        for _ in range(_UPDATE_ATTEMPTS):
            with self._qdrant.session() as client:
                point = self._points(client, [adapter_id], with_vectors=vectors is None)
                if not point:
                    raise _not_found(adapter_id)
                before = adapter_of(point[0])
                if expected_revision and before.revision != expected_revision:
                    break
                stored = _stamped(change(before), vectors)
                named = _named(vectors) if vectors is not None else point[0].vector
                client.upsert(
                    self._collection,
                    [point_of(stored, named)],
                    update_mode=models.UpdateMode.UPDATE_ONLY,
                    update_filter=models.Filter(must=[equals("revision", before.revision)]),
                )
                self._touch(client)
                there = self._read(client, adapter_id)
            if there is not None and there.revision == stored.revision:
                return stored
        raise ConflictError(
            f"adapter {adapter_id!r} was changed by someone else; get it again and repeat", adapter_id=adapter_id
        )

    def get(self, adapter_id: str) -> Adapter:
        """Return an adapter. Raises NotFoundError."""
        check_adapter_id(adapter_id)
        with self._qdrant.session() as client:
            adapter = self._read(client, adapter_id)
        if adapter is None:
            raise _not_found(adapter_id)
        return adapter

    def exists(self, adapter_id: str) -> bool:
        """Return whether there is an adapter of that id."""
        with self._qdrant.session() as client:
            return self._read(client, adapter_id) is not None

    def page(self, wanted: AdapterFilter, size: int, after: str = "") -> Page:
        """Return the first `size` adapters, by id, whose ids come after `after`."""
        with self._qdrant.session() as client:
            ids = sorted(self._ids(client, wanted))
            later = [adapter_id for adapter_id in ids if adapter_id > after]
            points = self._points(client, later[:size])
            revision = self._revision(client)
        adapters = tuple(sorted(map(adapter_of, points), key=lambda adapter: adapter.adapter_id))
        return Page(adapters, len(ids), len(later) > size, revision)

    def delete(self, adapter_id: str) -> None:
        """Remove an adapter with its vectors. Raises NotFoundError."""
        check_adapter_id(adapter_id)
        with self._qdrant.session() as client:
            if self._read(client, adapter_id) is None:
                raise _not_found(adapter_id)
            client.delete(self._collection, models.PointIdsList(points=[point_id(adapter_id)]), wait=True)
            self._touch(client)

    def search(self, vectors: FloatArray, wanted: AdapterFilter, top_k: int) -> SearchResult:
        """Return the `top_k` adapters whose centroids are nearest to each vector of [n, dim]."""
        requests = [
            models.QueryRequest(query=vector, using=CENTROID, filter=condition(wanted), limit=top_k, with_payload=True)
            for vector in vectors.tolist()
        ]
        with self._qdrant.session() as client:
            revision = self._revision(client)
            answers = client.query_batch_points(self._collection, requests)
        return SearchResult(tuple(ranked(answer.points) for answer in answers), revision)

    def close(self) -> None:
        """Let go of the folder or the connections."""
        self._qdrant.close()

    def _make(self, client: QdrantClient, fingerprint: str) -> None:
        vectors = {
            CENTROID: models.VectorParams(size=self._dim, distance=models.Distance.COSINE),
            EXAMPLES: models.VectorParams(
                size=self._dim,
                distance=models.Distance.COSINE,
                multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
                hnsw_config=models.HnswConfigDiff(m=0),
                on_disk=True,
            ),
        }
        metadata = {"schema": _SCHEMA, "fingerprint": fingerprint, "dim": self._dim, "revision": _new_revision()}
        try:
            client.create_collection(self._collection, vectors_config=vectors, metadata=metadata)
        except UnexpectedResponse:
            if not client.collection_exists(self._collection):  # else another replica was faster
                raise
        if self._qdrant.shared:  # a local folder has no payload indexes
            for name in _KEYWORDS:
                client.create_payload_index(self._collection, name, models.PayloadSchemaType.KEYWORD)

    def _check(self, client: QdrantClient, fingerprint: str) -> None:
        where = f"collection {self._collection!r} in {self._qdrant.place}"
        metadata = self._metadata(client)
        if metadata.get("schema") != _SCHEMA:
            raise ConfigurationError(
                f"{where} was not made by this version of the service; choose another --collection"
            )
        if (metadata.get("fingerprint"), metadata.get("dim")) != (fingerprint, self._dim):
            raise ConfigurationError(
                f"{where} was made with [{metadata.get('fingerprint')}], this server embeds with [{fingerprint}]: "
                "use the same embedder and settings, or choose another --collection and register the adapters again"
            )

    def _metadata(self, client: QdrantClient) -> dict[str, Any]:
        return dict(client.get_collection(self._collection).config.metadata or {})

    def _revision(self, client: QdrantClient) -> str:
        return str(self._metadata(client).get("revision", ""))

    def _touch(self, client: QdrantClient) -> None:
        client.update_collection(self._collection, metadata={"revision": _new_revision()})

    def _read(self, client: QdrantClient, adapter_id: str) -> Adapter | None:
        points = self._points(client, [adapter_id])
        return adapter_of(points[0]) if points else None

    def _points(
        self, client: QdrantClient, adapter_ids: Sequence[str], *, with_vectors: bool = False
    ) -> list[models.Record]:
        if not adapter_ids:
            return []
        return client.retrieve(self._collection, [point_id(one) for one in adapter_ids], with_vectors=with_vectors)

    def _ids(self, client: QdrantClient, wanted: AdapterFilter) -> Iterator[str]:
        offset: Any = None
        while True:
            points, offset = client.scroll(
                self._collection,
                scroll_filter=condition(wanted),
                limit=_SCROLL_PAGE,
                offset=offset,
                with_payload=["adapter_id"],
            )
            yield from (str((point.payload or {})["adapter_id"]) for point in points)
            if offset is None:
                return


def _named(vectors: AdapterVectors) -> dict[str, Any]:
    return {CENTROID: vectors.centroid.tolist(), EXAMPLES: vectors.examples.tolist()}


def _stamped(adapter: Adapter, vectors: AdapterVectors | None) -> Adapter:
    count = adapter.example_count if vectors is None else len(vectors.examples)
    return replace(adapter, revision=_new_revision(), example_count=count, update_time=datetime.now(UTC))


def _new_revision() -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"


def _not_found(adapter_id: str) -> NotFoundError:
    return NotFoundError(
        f"there is no adapter {adapter_id!r} in the catalogue; list the adapters to see which there are",
        adapter_id=adapter_id,
    )
