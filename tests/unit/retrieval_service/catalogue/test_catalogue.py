"""One catalogue, in a folder and on a server, searched in memory and by Qdrant."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.contract.adapter import Adapter
from infra.contract.errors import (
    AlreadyExistsError,
    ConfigurationError,
    ConflictError,
    FailedPreconditionError,
    InvalidArgumentError,
    LoraRetrieverError,
    NotFoundError,
)
from retrieval_service.catalogue.catalogue import Catalogue
from retrieval_service.catalogue.collections import collection_info
from retrieval_service.catalogue.points import AdapterFilter, AdapterVectors
from retrieval_service.catalogue.qdrant import Qdrant, QdrantServer
from tests.support.servers.fake_qdrant import fake_qdrant_url
from tests.support.servers.qdrant_locations import Location

DIM = 8


def basis(index: int, *more: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    vector = np.zeros(DIM, np.float32)
    vector[[index, *more]] = 1
    return vector


def vectors(*indexes: int) -> AdapterVectors:
    return AdapterVectors.of([basis(index) for index in indexes], DIM)


def adapter(adapter_id: str, **fields: Any) -> Adapter:
    return Adapter(adapter_id, **{"base_model": "tiny", "checkpoint_uri": f"adapters/{adapter_id}", **fields})


@pytest.fixture(params=["memory", "qdrant"])
def opened(location: Location, request: pytest.FixtureRequest) -> Iterator[Callable[..., Catalogue]]:
    """Open the test's catalogue again, closing it first. It is searched in memory, or by Qdrant."""
    limit = 50_000 if request.param == "memory" else 0
    collection = f"test-{uuid.uuid4().hex}"
    catalogues: list[Catalogue] = []

    def open_catalogue(dim: int = DIM, fingerprint: str = "embedder one") -> Catalogue:
        for catalogue in catalogues:
            catalogue.close()
        catalogues.clear()
        qdrant = Qdrant(location)
        try:
            catalogues.append(Catalogue(qdrant, collection, dim=dim, fingerprint=fingerprint, memory_vectors=limit))
        except LoraRetrieverError:
            qdrant.close()
            raise
        return catalogues[0]

    yield open_catalogue
    for catalogue in catalogues:
        catalogue.close()
    with closing(Qdrant(location)) as qdrant, qdrant.session() as client:
        for one in client.get_collections().collections:
            if one.name.startswith(collection):
                client.delete_collection(one.name)


@pytest.fixture
def catalogue(opened: Callable[..., Catalogue]) -> Catalogue:
    return opened()


def names(catalogue: Catalogue, query: Any, wanted: AdapterFilter | None = None, top_k: int = 10) -> list[str]:
    found = catalogue.search(np.stack([query]), wanted or AdapterFilter(), top_k).matches[0]
    return [match.adapter.adapter_id for match in found]


def test_stored_adapter_is_returned_with_revision_and_time(catalogue: Catalogue) -> None:
    wanted = adapter("one", kind="app", display_name="One", description="first", tags=("x", "y"), rank=8)
    stored = catalogue.create(wanted, vectors(0, 1, 2))
    assert stored.revision
    assert stored.update_time is not None
    assert replace(stored, revision="", update_time=None) == replace(wanted, example_count=3)
    assert catalogue.get("one") == stored


def test_centroid_is_normalised_mean_of_examples(catalogue: Catalogue) -> None:
    catalogue.create(adapter("one"), AdapterVectors.of([basis(0), basis(1) * 100], DIM))
    found = catalogue.search(np.stack([basis(0), basis(0, 1), -basis(0, 1)]), AdapterFilter(), 1).matches
    assert [match[0].similarity for match in found] == pytest.approx([2**-0.5, 1, -1])


def test_matches_are_ordered_by_similarity_and_limited_to_top_k(catalogue: Catalogue) -> None:
    for index in range(4):
        catalogue.create(adapter(f"a{index}"), vectors(index))
    query = basis(2) * 3 + basis(0) * 2 + basis(3)
    assert names(catalogue, query) == ["a2", "a0", "a3", "a1"]
    assert names(catalogue, query, top_k=2) == ["a2", "a0"]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (AdapterFilter(), {"a", "b", "c"}),
        (AdapterFilter(base_model="tiny"), {"a", "b"}),
        (AdapterFilter(kind="app"), {"a", "c"}),
        (AdapterFilter(tags=("x",)), {"a", "b"}),
        (AdapterFilter(tags=("x", "y")), {"b"}),
        (AdapterFilter(include=("a", "c")), {"a", "c"}),
        (AdapterFilter(exclude=("a", "unknown")), {"b", "c"}),
        (AdapterFilter(include=("a", "b"), exclude=("a",)), {"b"}),
        (AdapterFilter(kind="app", base_model="tiny", exclude=("a",)), set()),
    ],
)
def test_filters_apply_to_search_and_listing(catalogue: Catalogue, wanted: AdapterFilter, expected: set[str]) -> None:
    catalogue.create(adapter("a", kind="app", tags=("x",)), vectors(0))
    catalogue.create(adapter("b", kind="category", tags=("y", "x")), vectors(1))
    catalogue.create(adapter("c", kind="app", base_model="other"), vectors(2))
    assert set(names(catalogue, basis(0, 1, 2), wanted)) == expected
    page = catalogue.page(wanted, 10)
    assert {item.adapter_id for item in page.adapters} == expected
    assert page.total == len(expected)


@pytest.mark.parametrize(
    ("unknown", "message"),
    [
        (AdapterFilter(include=("a", "unknown")), r"include\[1\]: the catalogue has no adapter 'unknown'; it has a"),
        (AdapterFilter(kind="ap"), "kind: the catalogue has no adapter of kind 'ap'; did you mean app"),
        (AdapterFilter(tags=("x", "w")), r"tags\[1\]: the catalogue has no adapter with tag 'w'; it has x"),
    ],
)
def test_search_refuses_filter_that_names_what_catalogue_lacks(
    catalogue: Catalogue, unknown: AdapterFilter, message: str
) -> None:
    assert names(catalogue, basis(0), unknown) == []
    catalogue.create(adapter("a", kind="app", tags=("x",)), vectors(0))
    with pytest.raises(InvalidArgumentError, match=message):
        names(catalogue, basis(0), unknown)


def test_duplicate_id_is_refused(catalogue: Catalogue) -> None:
    first = catalogue.create(adapter("one"), vectors(0))
    with pytest.raises(AlreadyExistsError, match="'one' exists already"):
        catalogue.create(adapter("one", kind="other"), vectors(1))
    assert catalogue.get("one") == first


def test_concurrent_creation_of_same_id_succeeds_once(catalogue: Catalogue) -> None:
    barrier = threading.Barrier(8)

    def create(index: int) -> Adapter | None:
        barrier.wait()
        try:
            return catalogue.create(adapter("same", description=str(index)), vectors(index))
        except AlreadyExistsError:
            return None

    with ThreadPoolExecutor(8) as pool:
        created = [one for one in pool.map(create, range(8)) if one is not None]
    assert created == [catalogue.get("same")]


def test_deleted_adapter_is_not_found_and_its_id_is_free(catalogue: Catalogue) -> None:
    before = catalogue.create(adapter("one"), vectors(0))
    catalogue.delete("one")
    assert names(catalogue, basis(0)) == []
    assert catalogue.page(AdapterFilter(), 10).total == 0
    for call in (catalogue.get, catalogue.delete):
        with pytest.raises(NotFoundError, match="no adapter 'one'"):
            call("one")
    assert catalogue.create(adapter("one"), vectors(1)).revision != before.revision
    assert names(catalogue, basis(1)) == ["one"]


def test_pages_follow_each_other_by_id(catalogue: Catalogue) -> None:
    ids = sorted(f"a{index}" for index in range(7))
    for adapter_id in reversed(ids):
        catalogue.create(adapter(adapter_id), vectors(0))
    seen: list[str] = []
    while True:
        page = catalogue.page(AdapterFilter(), 3, seen[-1] if seen else "")
        seen += [item.adapter_id for item in page.adapters]
        assert page.total == 7
        if not page.has_more:
            break
    assert seen == ids


def test_every_change_bumps_revision_and_reading_does_not(catalogue: Catalogue) -> None:
    def revision() -> str:
        searched = catalogue.search(np.stack([basis(0)]), AdapterFilter(), 1).revision
        assert searched == catalogue.page(AdapterFilter(), 1).revision
        return searched

    seen = [revision()]
    for change in (
        lambda: catalogue.create(adapter("one"), vectors(0)),
        lambda: catalogue.update("one", lambda one: replace(one, kind="app")),
        lambda: catalogue.delete("one"),
        lambda: catalogue.create(adapter("one"), vectors(0)),
    ):
        change()
        seen.append(revision())
        assert revision() == seen[-1]
    assert len(set(seen)) == len(seen)


def test_update_changes_fields_and_revision_and_keeps_vectors(catalogue: Catalogue) -> None:
    first = catalogue.create(adapter("one", kind="app"), vectors(0, 1))
    second = catalogue.update("one", lambda one: replace(one, kind="category"))
    assert (second.kind, second.example_count) == ("category", 2)
    assert second.revision != first.revision
    assert catalogue.get("one") == second
    assert names(catalogue, basis(0), AdapterFilter(kind="category")) == ["one"]
    found = catalogue.search(np.stack([basis(0, 1)]), AdapterFilter(), 1).matches[0][0]
    assert found.similarity == pytest.approx(1)
    third = catalogue.update("one", lambda one: one, vectors(5))
    assert third.example_count == 1
    found = catalogue.search(np.stack([basis(5)]), AdapterFilter(), 1).matches[0][0]
    assert found.similarity == pytest.approx(1)


def test_update_of_outdated_revision_is_conflict(catalogue: Catalogue) -> None:
    first = catalogue.create(adapter("one"), vectors(0))
    second = catalogue.update("one", lambda one: replace(one, kind="app"), expected_revision=first.revision)
    with pytest.raises(ConflictError, match="changed by another caller"):
        catalogue.update("one", lambda one: replace(one, kind="lost"), expected_revision=first.revision)
    assert catalogue.get("one") == second
    with pytest.raises(NotFoundError):
        catalogue.update("two", lambda one: one)


def test_catalogue_survives_restart(opened: Callable[..., Catalogue]) -> None:
    first = opened()
    kept = first.create(adapter("kept"), vectors(0))
    first.create(adapter("gone"), vectors(1))
    first.delete("gone")
    revision = first.page(AdapterFilter(), 1).revision
    again = opened()
    assert again.page(AdapterFilter(), 10).adapters == (kept,)
    assert again.page(AdapterFilter(), 10).revision == revision
    assert names(again, basis(0, 1)) == ["kept"]


@pytest.mark.parametrize("other", [{"fingerprint": "embedder two"}, {"dim": 4}])
def test_catalogue_of_another_embedder_is_refused_with_remedy(
    opened: Callable[..., Catalogue], other: dict[str, Any]
) -> None:
    opened().create(adapter("one"), vectors(0))
    with pytest.raises(
        ConfigurationError, match=r"was built with \[embedder one\].*retrieval reindex.*choose another --collection"
    ):
        opened(**other)
    assert opened().get("one").adapter_id == "one"


def test_foreign_collection_is_refused(location: Location) -> None:
    collection = f"test-{uuid.uuid4().hex}"
    with closing(Qdrant(location)) as qdrant:
        with qdrant.session() as client:
            client.create_collection(collection, vectors_config={})
        with pytest.raises(ConfigurationError, match="not created by this version of the service"):
            Catalogue(qdrant, collection, dim=DIM, fingerprint="embedder one")
        with qdrant.session() as client:
            client.delete_collection(collection)


def test_eight_threads_create_search_update_and_delete_without_errors(catalogue: Catalogue) -> None:
    catalogue.create(adapter("constant"), vectors(7))

    def work(thread: int) -> None:
        for turn in range(6):
            mine = f"t{thread}-{turn}"
            catalogue.create(adapter(mine), vectors(thread % 7, turn))
            assert mine in names(catalogue, basis(thread % 7, turn), AdapterFilter(exclude=("constant",)), 64)
            catalogue.update(mine, lambda one: replace(one, kind="changed"))
            assert names(catalogue, basis(7), top_k=1) == ["constant"]
            catalogue.page(AdapterFilter(kind="changed"), 5)
            catalogue.delete(mine)
            assert mine not in names(catalogue, basis(thread % 7, turn), top_k=64)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert [one.adapter_id for one in catalogue.page(AdapterFilter(), 99).adapters] == ["constant"]


def test_replicas_that_start_together_on_one_server_share_one_catalogue() -> None:
    barrier = threading.Barrier(4)

    def start(url: str) -> Catalogue:
        qdrant = Qdrant(QdrantServer(url))
        barrier.wait()
        return Catalogue(qdrant, "adapters", dim=DIM, fingerprint="embedder one")

    with fake_qdrant_url() as url, ThreadPoolExecutor(4) as pool:
        replicas = list(pool.map(start, [url] * 4))
        created = replicas[0].create(adapter("one"), vectors(0))
        assert [replica.get("one") for replica in replicas] == [created] * 4
        assert names(replicas[3], basis(0)) == ["one"]
        for replica in replicas:
            replica.close()


def test_vanished_catalogue_is_reported(tmp_path: Path) -> None:
    with fake_qdrant_url() as url, closing(Qdrant(QdrantServer(url))) as qdrant:
        catalogue = Catalogue(qdrant, "adapters", dim=DIM, fingerprint="embedder one")
        with qdrant.session() as client:
            client.delete_collection(collection_info(client, "adapters").collection)
        with pytest.raises(FailedPreconditionError, match="no longer exists in Qdrant"):
            catalogue.get("one")
