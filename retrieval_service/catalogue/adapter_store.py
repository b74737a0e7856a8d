"""Reads and writes the points of one collection, one point per adapter.

A point's id is the uuid5 of the adapter's id and its payload is the adapter. It has two named vectors: `centroid`, the
mean of the adapter's examples (LoraRetriever, section 3.2), and `examples`, all of them as a multivector.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from qdrant_client import QdrantClient, models

from infra.contract.adapter import Adapter
from retrieval_service.catalogue.collections import bump_revision, new_revision
from retrieval_service.catalogue.points import (
    CENTROID,
    EXAMPLES,
    AdapterFilter,
    AdapterVectors,
    ScoredAdapter,
    examples_revision_of,
    field_equals,
    from_point,
    point_id,
    ranked_adapters,
    to_point,
    to_qdrant_filter,
)
from retrieval_service.embedders.base import FloatArray, normalise

_SCROLL_PAGE = 1000  # headers only, without vectors: a few hundred bytes each
_VECTORS_PAGE = 32  # bounds one response: at most 64 MiB of float32 for 256 examples of 2048 dimensions each
_EXTRA_MATCHES = 8  # fetched beyond top_k, so that ties at the end are broken by id and not by Qdrant


@dataclass(frozen=True, eq=False)
class AdapterWithVectors:
    """An adapter and the vectors of its examples, [n, dim], each of length 1."""

    adapter: Adapter
    vectors: FloatArray


@dataclass(frozen=True)
class AdapterHeader:
    """Enough of an adapter to tell whether it has changed and how many vectors it has."""

    point_id: Any
    adapter_id: str
    revision: str
    example_count: int


@dataclass(frozen=True)
class AdapterStore:
    """The points of a collection. Valid only within the Qdrant session that `client` belongs to."""

    client: QdrantClient
    collection: str

    def insert(self, adapter: Adapter, vectors: AdapterVectors, examples_revision: str = "") -> None:
        """Store an adapter unless its id exists."""
        point = to_point(adapter, _named(vectors), examples_revision)
        self.client.upsert(self.collection, [point], update_mode=models.UpdateMode.INSERT_ONLY)

    def replace(
        self, adapter: Adapter, vectors: AdapterVectors | None, expected_revision: str, examples_revision: str = ""
    ) -> None:
        """Replace an adapter if its revision is still `expected_revision`; None keeps its vectors."""
        points = self._points([adapter.adapter_id], with_vectors=True)
        if not points:  # deleted in the meantime
            return
        named = _named(vectors) if vectors is not None else points[0].vector
        examples_revision = examples_revision if vectors is not None else examples_revision_of(points[0])
        self.client.upsert(
            self.collection,
            [to_point(adapter, named, examples_revision)],
            update_mode=models.UpdateMode.UPDATE_ONLY,
            update_filter=models.Filter(must=[field_equals("revision", expected_revision)]),
        )

    def upsert(self, adapter: Adapter, vectors: AdapterVectors, examples_revision: str = "") -> None:
        """Store an adapter unconditionally."""
        self.client.upsert(self.collection, [to_point(adapter, _named(vectors), examples_revision)])

    def delete(self, adapter_ids: Sequence[str]) -> None:
        """Delete adapters."""
        ids: list[Any] = [point_id(name) for name in adapter_ids]
        self.client.delete(self.collection, models.PointIdsList(points=ids), wait=True)

    def bump_revision(self) -> None:
        """Give the catalogue a new revision. Must follow the change that it announces."""
        bump_revision(self.client, self.collection)

    def get(self, adapter_id: str) -> Adapter | None:
        """Return an adapter, or None."""
        points = self._points([adapter_id])
        return from_point(points[0]) if points else None

    def get_many(self, adapter_ids: Sequence[str]) -> list[Adapter]:
        """Return those of the adapters that exist, by id."""
        return sorted(map(from_point, self._points(adapter_ids)), key=lambda adapter: adapter.adapter_id)

    def get_with_vectors(self, adapter_id: str) -> AdapterWithVectors | None:
        """Return an adapter with its vectors, or None."""
        return next(self.read_vectors([point_id(adapter_id)]), None)

    def examples_revision(self, adapter_id: str) -> str:
        """Return the revision under which an adapter's examples are stored, or an empty string."""
        points = self._points([adapter_id])
        return examples_revision_of(points[0]) if points else ""

    def read_vectors(self, point_ids: Sequence[Any]) -> Iterator[AdapterWithVectors]:
        """Yield the adapters of those points that still exist, with their vectors."""
        for start in range(0, len(point_ids), _VECTORS_PAGE):
            page = list(point_ids[start : start + _VECTORS_PAGE])
            for point in self.client.retrieve(self.collection, page, with_vectors=[EXAMPLES]):
                named: Any = point.vector
                yield AdapterWithVectors(from_point(point), normalise(np.asarray(named[EXAMPLES], np.float32)))

    def headers(self, adapter_filter: AdapterFilter | None = None) -> Iterator[AdapterHeader]:
        """Yield the header of each matching adapter."""
        offset: Any = None
        while True:
            points, offset = self.client.scroll(
                self.collection,
                scroll_filter=to_qdrant_filter(adapter_filter or AdapterFilter()),
                limit=_SCROLL_PAGE,
                offset=offset,
                with_payload=["adapter_id", "revision", "example_count"],
            )
            for point in points:
                payload = point.payload or {}
                count = max(1, int(payload.get("example_count") or 1))
                yield AdapterHeader(point.id, str(payload["adapter_id"]), str(payload["revision"]), count)
            if offset is None:
                return

    def search_centroids(
        self, vectors: FloatArray, adapter_filter: AdapterFilter, top_k: int
    ) -> tuple[tuple[ScoredAdapter, ...], ...]:
        """Return the `top_k` adapters whose centroids are nearest to each vector of [n, dim]."""
        requests = [
            models.QueryRequest(
                query=vector,
                using=CENTROID,
                filter=to_qdrant_filter(adapter_filter),
                limit=top_k + _EXTRA_MATCHES,
                with_payload=True,
            )
            for vector in vectors.tolist()
        ]
        responses = self.client.query_batch_points(self.collection, requests)
        return tuple(ranked_adapters(response.points)[:top_k] for response in responses)

    def _points(self, adapter_ids: Sequence[str], with_vectors: bool = False) -> list[models.Record]:
        if not adapter_ids:
            return []
        ids: list[Any] = [point_id(name) for name in adapter_ids]
        return self.client.retrieve(self.collection, ids, with_vectors=with_vectors)


def with_new_revision(adapter: Adapter, vectors: AdapterVectors | None) -> Adapter:
    """Return the adapter with a new revision, the current time, and the example count of `vectors` if given."""
    count = adapter.example_count if vectors is None else len(vectors.examples)
    return replace(adapter, revision=new_revision(), example_count=count, update_time=datetime.now(UTC))


def _named(vectors: AdapterVectors) -> dict[str, Any]:
    return {CENTROID: vectors.centroid.tolist(), EXAMPLES: vectors.examples.tolist()}
