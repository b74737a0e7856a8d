"""The points of one collection: an adapter each.

A point's id is the uuid5 of the adapter's id; its payload is the adapter; its named vectors are `centroid`, the mean of
the adapter's examples (LoraRetriever, section 3.2), and `examples`, all of them as a multivector.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from qdrant_client import QdrantClient, models

from infra.contract.adapter import Adapter
from retrieval_service.catalogue.collections import describe, new_revision
from retrieval_service.catalogue.points import (
    CENTROID,
    EXAMPLES,
    KEPT_AS,
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
from retrieval_service.embedders.base import FloatArray, normalise

_SCROLL_PAGE = 1000
_VECTORS_PAGE = 32
_TIES = 8  # more than asked for, so that equals at the end are chosen by id


@dataclass(frozen=True, eq=False)
class Entry:
    """An adapter and the vectors of its examples, [n, dim], each of length 1."""

    adapter: Adapter
    vectors: FloatArray


@dataclass(frozen=True)
class Card:
    """What tells whether an adapter has changed, and how large it is."""

    point_id: Any
    adapter_id: str
    revision: str
    example_count: int


@dataclass(frozen=True)
class Store:
    """A collection, by a client that may be used now."""

    client: QdrantClient
    collection: str

    def insert(self, adapter: Adapter, vectors: AdapterVectors, kept_as: str = "") -> None:
        """Store an adapter unless there is one of its id. `kept_as`: the revision that its examples are kept as."""
        point = point_of(adapter, _named(vectors), kept_as)
        self.client.upsert(self.collection, [point], update_mode=models.UpdateMode.INSERT_ONLY)

    def replace(self, adapter: Adapter, vectors: AdapterVectors | None, revision: str, kept_as: str = "") -> None:
        """Store an adapter in the place of its `revision`, if it is still that; without vectors its own stay."""
        there = self._points([adapter.adapter_id], True)
        if not there:  # deleted by now
            return
        named = _named(vectors) if vectors is not None else there[0].vector
        kept_as = kept_as if vectors is not None else _kept_as(there[0])
        self.client.upsert(
            self.collection,
            [point_of(adapter, named, kept_as)],
            update_mode=models.UpdateMode.UPDATE_ONLY,
            update_filter=models.Filter(must=[equals("revision", revision)]),
        )

    def put(self, adapter: Adapter, vectors: AdapterVectors, kept_as: str = "") -> None:
        """Store an adapter as it is, whatever is there."""
        self.client.upsert(self.collection, [point_of(adapter, _named(vectors), kept_as)])

    def delete(self, adapter_ids: Sequence[str]) -> None:
        """Remove adapters."""
        ids: list[Any] = [point_id(one) for one in adapter_ids]
        self.client.delete(self.collection, models.PointIdsList(points=ids), wait=True)

    def touch(self) -> None:
        """Give the catalogue a new revision; after the change that it is for."""
        describe(self.client, self.collection)

    def read(self, adapter_id: str) -> Adapter | None:
        """Return an adapter, if there is one of that id."""
        points = self._points([adapter_id])
        return adapter_of(points[0]) if points else None

    def kept_as(self, adapter_id: str) -> str:
        """Return the revision that an adapter's examples are kept as; empty where none are, or long since."""
        points = self._points([adapter_id])
        return _kept_as(points[0]) if points else ""

    def read_many(self, adapter_ids: Sequence[str]) -> list[Adapter]:
        """Return those adapters that are there, by id."""
        return sorted(map(adapter_of, self._points(adapter_ids)), key=lambda one: one.adapter_id)

    def entries(self, point_ids: Sequence[Any]) -> Iterator[Entry]:
        """Yield the adapters of points that are still there, with their vectors."""
        for start in range(0, len(point_ids), _VECTORS_PAGE):
            page = list(point_ids[start : start + _VECTORS_PAGE])
            for point in self.client.retrieve(self.collection, page, with_vectors=[EXAMPLES]):
                named: Any = point.vector
                yield Entry(adapter_of(point), normalise(np.asarray(named[EXAMPLES], np.float32)))

    def entry(self, adapter_id: str) -> Entry | None:
        """Return an adapter with its vectors, if there is one of that id."""
        return next(self.entries([point_id(adapter_id)]), None)

    def cards(self, wanted: AdapterFilter | None = None) -> Iterator[Card]:
        """Yield a card of each adapter that `wanted` lets pass."""
        offset: Any = None
        while True:
            points, offset = self.client.scroll(
                self.collection,
                scroll_filter=condition(wanted or AdapterFilter()),
                limit=_SCROLL_PAGE,
                offset=offset,
                with_payload=["adapter_id", "revision", "example_count"],
            )
            for point in points:
                payload = point.payload or {}
                count = max(1, int(payload.get("example_count") or 1))
                yield Card(point.id, str(payload["adapter_id"]), str(payload["revision"]), count)
            if offset is None:
                return

    def nearest(self, vectors: FloatArray, wanted: AdapterFilter, top_k: int) -> tuple[tuple[Found, ...], ...]:
        """Return the `top_k` adapters whose centroids are nearest to each vector of [n, dim]."""
        requests = [
            models.QueryRequest(
                query=vector, using=CENTROID, filter=condition(wanted), limit=top_k + _TIES, with_payload=True
            )
            for vector in vectors.tolist()
        ]
        answers = self.client.query_batch_points(self.collection, requests)
        return tuple(ranked(answer.points)[:top_k] for answer in answers)

    def _points(self, adapter_ids: Sequence[str], with_vectors: bool = False) -> list[models.Record]:
        if not adapter_ids:
            return []
        ids: list[Any] = [point_id(one) for one in adapter_ids]
        return self.client.retrieve(self.collection, ids, with_vectors=with_vectors)


def stamped(adapter: Adapter, vectors: AdapterVectors | None) -> Adapter:
    """Return the adapter as a new revision of now; its examples are counted anew where there are new ones."""
    count = adapter.example_count if vectors is None else len(vectors.examples)
    return replace(adapter, revision=new_revision(), example_count=count, update_time=datetime.now(UTC))


def _kept_as(point: models.Record) -> str:
    return str((point.payload or {}).get(KEPT_AS, ""))


def _named(vectors: AdapterVectors) -> dict[str, Any]:
    return {CENTROID: vectors.centroid.tolist(), EXAMPLES: vectors.examples.tolist()}
