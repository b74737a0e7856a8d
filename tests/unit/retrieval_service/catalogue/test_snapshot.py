"""The in-memory snapshot: what is reread, and how strategies are fitted."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest

from infra.contract.errors import (
    FailedPreconditionError,
)
from infra.contract.retrieval import RetrievalStrategy
from retrieval_service.catalogue import backup
from retrieval_service.catalogue import snapshot as snapshot_module
from retrieval_service.catalogue.adapter_store import AdapterStore
from retrieval_service.catalogue.catalogue import Catalogue
from retrieval_service.catalogue.points import AdapterFilter
from retrieval_service.catalogue.qdrant import Qdrant, QdrantServer
from retrieval_service.strategies.examples import ExampleSet
from retrieval_service.strategies.scale import Similarities
from tests.support.harness.replica_catalogues import (
    EVERYTHING,
    adapter,
    open_catalogue,
    query_vectors,
    random_vectors,
    retrieved_ids,
)
from tests.support.servers.fake_qdrant import FakeQdrant


def test_refresh_reads_only_changed_adapters(qdrant: FakeQdrant, replicas: tuple[Catalogue, Catalogue]) -> None:
    first, second = replicas
    for turn in range(5):
        first.create(adapter(f"a{turn}"), random_vectors(turn))
    retrieved_ids(second)
    read: list[int] = []

    def counted(store: AdapterStore, point_ids: Any) -> Any:
        read.append(len(point_ids))
        return original(store, point_ids)

    original = AdapterStore.read_vectors
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AdapterStore, "read_vectors", counted)
        first.create(adapter("new"), random_vectors(7))
        first.delete("a0")
        assert retrieved_ids(second) == {"a1", "a2", "a3", "a4", "new"}
        qdrant.requests.clear()
        assert retrieved_ids(second) == {"a1", "a2", "a3", "a4", "new"}
    assert read == [1]
    assert [request for request in qdrant.requests if not request.startswith("GET /collections/adapters")] == []


def test_change_without_new_revision_is_found_by_full_check(
    qdrant: FakeQdrant, replicas: tuple[Catalogue, Catalogue], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = replicas
    first.create(adapter("one"), random_vectors(1))
    assert retrieved_ids(second) == {"one"}
    with monkeypatch.context() as patch:
        patch.setattr(AdapterStore, "bump_revision", lambda store: None)  # as if the service had died right before
        first.delete("one")
    monkeypatch.setattr(snapshot_module, "_FULL_CHECK_INTERVAL_S", 0.0)
    assert retrieved_ids(second) == set()


@pytest.mark.parametrize("top_k", [1, 4, 30])
@pytest.mark.parametrize(
    "wanted",
    [
        EVERYTHING,
        AdapterFilter(kind="app"),
        AdapterFilter(tags=("x",), exclude=("a3",)),
        AdapterFilter(include=("a5",)),
    ],
)
def test_search_in_memory_and_in_qdrant_agree(qdrant: FakeQdrant, wanted: AdapterFilter, top_k: int) -> None:
    with (
        open_catalogue(QdrantServer(qdrant.url)) as in_memory,
        open_catalogue(QdrantServer(qdrant.url), memory_vectors=0) as by_qdrant,
    ):
        for turn in range(20):
            kind, tags = ("app", ("x", "y")) if turn % 3 else ("category", ())
            in_memory.create(adapter(f"a{turn}", kind=kind, tags=tags), random_vectors(turn % 15, 1 + turn % 15 % 4))
        mine, theirs = (each.search(query_vectors(), wanted, top_k) for each in (in_memory, by_qdrant))
        for left, right in zip(mine.matches, theirs.matches, strict=True):
            assert [match.adapter for match in left] == [match.adapter for match in right]
            assert [match.similarity for match in left] == pytest.approx(
                [match.similarity for match in right], abs=1e-5
            )
        assert mine.revision == theirs.revision


def test_too_large_catalogue_names_supported_strategy(qdrant: FakeQdrant) -> None:
    with open_catalogue(QdrantServer(qdrant.url), memory_vectors=5) as catalogue:
        catalogue.create(adapter("one"), random_vectors(1, 4))
        assert retrieved_ids(catalogue, RetrievalStrategy.CALIBRATED) == {"one"}
        catalogue.create(adapter("two"), random_vectors(2, 4))
        with pytest.raises(FailedPreconditionError, match=r"more than 5 example vectors.*'calibrated'.*'centroid'"):
            retrieved_ids(catalogue, RetrievalStrategy.CALIBRATED)
        assert retrieved_ids(catalogue) == {"one", "two"}
        catalogue.delete("one")
        assert retrieved_ids(catalogue, RetrievalStrategy.CALIBRATED) == {"two"}


def test_alias_moved_to_empty_collection_empties_snapshot(
    qdrant: FakeQdrant, replicas: tuple[Catalogue, Catalogue]
) -> None:
    first, second = replicas
    with closing(Qdrant(QdrantServer(qdrant.url))) as other, other.session() as client:
        empty = backup.take_backup(client, "adapters")
        first.create(adapter("one"), random_vectors(1))
        assert retrieved_ids(second) == {"one"}
        backup.restore_backup(client, "adapters", empty, replace=True, indexed=False)
    assert retrieved_ids(second) == set()
    assert second.search(query_vectors(1), EVERYTHING, 9).revision == second.page(EVERYTHING, 9).revision


def test_too_large_catalogue_is_not_reread_until_it_changes(qdrant: FakeQdrant) -> None:
    with open_catalogue(QdrantServer(qdrant.url), memory_vectors=5) as catalogue:
        catalogue.create(adapter("one"), random_vectors(1, 9))
        assert retrieved_ids(catalogue) == {"one"}
        qdrant.requests.clear()
        assert retrieved_ids(catalogue) == {"one"}
        assert [request for request in qdrant.requests if "scroll" in request] == []
        catalogue.update("one", lambda one: one, random_vectors(1, 2))
        assert retrieved_ids(catalogue, RetrievalStrategy.CALIBRATED) == {"one"}


def test_search_does_not_wait_while_another_strategy_is_fitted(
    replicas: tuple[Catalogue, Catalogue], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = replicas
    first.create(adapter("one"), random_vectors(1))
    fitting, may_go_on = threading.Event(), threading.Event()

    class Slow(Similarities):
        def __init__(self, strategy: RetrievalStrategy, *others: Any) -> None:
            if strategy is RetrievalStrategy.CALIBRATED:
                fitting.set()
                assert may_go_on.wait(30)
            super().__init__(strategy, *others)

    monkeypatch.setattr(snapshot_module, "Similarities", Slow)
    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(retrieved_ids, first, RetrievalStrategy.CALIBRATED)
        try:
            assert fitting.wait(30)
            assert pool.submit(retrieved_ids, first).result(timeout=30) == {"one"}
        finally:
            may_go_on.set()
        assert slow.result() == {"one"}


def test_kinds_that_do_not_decide_share_one_fit(
    replicas: tuple[Catalogue, Catalogue], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = replicas
    for turn in range(12):
        first.create(adapter(f"a{turn}", kind=f"kind{turn}"), random_vectors(turn))
    made: list[str] = []

    class Counted(Similarities):
        def __init__(self, strategy: RetrievalStrategy, examples: ExampleSet, kind: str = "") -> None:
            made.append(kind)
            super().__init__(strategy, examples, kind)

    monkeypatch.setattr(snapshot_module, "Similarities", Counted)
    for turn in range(12):
        assert first.search(
            query_vectors(1), AdapterFilter(kind=f"kind{turn}"), 9, RetrievalStrategy.CALIBRATED
        ).matches[0]
    assert made == [""]
