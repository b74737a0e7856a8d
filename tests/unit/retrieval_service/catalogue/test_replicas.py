"""Several services on one Qdrant server: they see each other's changes and survive its absence."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace

import grpc
import pytest
from loraretriever.v1 import adapter_pb2
from loraretriever.v1 import retrieval_service_pb2 as pb

from infra.contract.adapter import Adapter
from infra.contract.errors import (
    NotFoundError,
    UnavailableError,
)
from infra.contract.prompt import Prompt
from infra.contract.retrieval import RetrievalStrategy, SelectionReason
from infra.runtime.wire import prompt_to_proto
from retrieval_service.catalogue import catalogue as catalogue_module
from retrieval_service.catalogue.catalogue import Catalogue
from retrieval_service.catalogue.points import AdapterFilter
from retrieval_service.catalogue.qdrant import QdrantServer
from tests.support.harness.replica_catalogues import (
    EVERYTHING,
    adapter,
    open_catalogue,
    query_vectors,
    random_vectors,
    retrieved_ids,
)
from tests.support.servers.fake_qdrant import FakeQdrant
from tests.support.servers.retrieval_server import Service, retrieval_service


@pytest.mark.parametrize("strategy", RetrievalStrategy)
def test_change_on_one_replica_is_visible_to_next_search_of_other(
    replicas: tuple[Catalogue, Catalogue], strategy: RetrievalStrategy
) -> None:
    first, second = replicas
    assert retrieved_ids(second, strategy) == set()
    first.create(adapter("one"), random_vectors(1))
    assert retrieved_ids(second, strategy) == {"one"}
    second.create(adapter("two"), random_vectors(2))
    assert retrieved_ids(first, strategy) == {"one", "two"}
    first.update("two", lambda two: replace(two, kind="changed"), random_vectors(3))
    assert second.search(query_vectors(), AdapterFilter(kind="changed"), 9, strategy).matches == (
        first.search(query_vectors(), AdapterFilter(kind="changed"), 9, strategy).matches
    )
    first.delete("one")
    assert retrieved_ids(second, strategy) == {"two"}
    result = [replica.search(query_vectors(), EVERYTHING, 9, strategy) for replica in replicas]
    assert result[0] == result[1]


def test_deleted_adapter_is_not_found_after_acknowledgement(
    replicas: tuple[Catalogue, Catalogue],
) -> None:
    first, second = replicas
    first.create(adapter("constant"), random_vectors(0))
    gone: set[str] = set()
    stop = threading.Event()

    def search() -> int:
        answers = 0
        while not stop.is_set():
            before = set(gone)
            for strategy in (RetrievalStrategy.CALIBRATED, RetrievalStrategy.NEAREST_EXAMPLES):
                found = retrieved_ids(second, strategy)
                assert "constant" in found
                assert not found & before
                answers += 1
        return answers

    with ThreadPoolExecutor(3) as pool:
        searches = [pool.submit(search) for _ in range(2)]
        try:
            for turn in range(12):
                first.create(adapter(f"a{turn}"), random_vectors(turn))
                assert f"a{turn}" in retrieved_ids(second)
                first.delete(f"a{turn}")
                gone.add(f"a{turn}")
        finally:
            stop.set()
        assert all(future.result() > 0 for future in searches)


def test_search_without_matches_says_whether_catalogue_or_filter_is_empty(qdrant: FakeQdrant) -> None:
    wanted = AdapterFilter(base_model="other")
    with (
        open_catalogue(QdrantServer(qdrant.url)) as in_memory,
        open_catalogue(QdrantServer(qdrant.url), memory_vectors=0) as by_qdrant,
    ):
        assert in_memory.search(query_vectors(1), wanted, 3).reason is SelectionReason.EMPTY_CATALOGUE
        in_memory.create(adapter("one"), random_vectors(1))
        for catalogue in (in_memory, by_qdrant):
            result = catalogue.search(query_vectors(1), wanted, 3)
            assert (result.matches, result.reason) == (((),), SelectionReason.NO_ADAPTERS_OF_MODEL)
            excluding = AdapterFilter(base_model="tiny", exclude=("one",))
            assert catalogue.search(query_vectors(1), excluding, 3).reason is SelectionReason.NO_ADAPTERS_ALLOWED
            assert catalogue.search(query_vectors(1), EVERYTHING, 3).reason is None


def test_calls_are_unavailable_without_qdrant_and_recover(qdrant: FakeQdrant) -> None:
    with open_catalogue(QdrantServer(qdrant.url)) as catalogue:
        catalogue.create(adapter("one"), random_vectors(1))
        calls = (
            lambda: retrieved_ids(catalogue),
            lambda: catalogue.get("one"),
            lambda: catalogue.page(EVERYTHING, 5),
            lambda: catalogue.create(adapter("two"), random_vectors(2)),
            lambda: catalogue.delete("one"),
        )
        qdrant.broken = True
        for call in calls:
            with pytest.raises(UnavailableError, match=r"503.*retry"):
                call()
        qdrant.broken = False
        for call in calls:
            call()
        assert retrieved_ids(catalogue) == {"two"}


def test_stale_reads_return_last_known_catalogue_marked_stale(
    qdrant: FakeQdrant, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(catalogue_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    with open_catalogue(QdrantServer(qdrant.url), stale_reads=True) as catalogue:
        one = catalogue.create(adapter("one"), random_vectors(1))
        fresh = catalogue.search(query_vectors(), EVERYTHING, 5, RetrievalStrategy.CALIBRATED)
        assert not fresh.stale
        qdrant.broken = True
        stale = catalogue.search(query_vectors(), EVERYTHING, 5, RetrievalStrategy.CALIBRATED)
        assert stale == replace(fresh, stale=True)
        looked_up = catalogue.look_up("one", with_vectors=True)
        assert (looked_up.adapter, looked_up.stale, len(looked_up.vectors)) == (one, True, 4)
        page = catalogue.page(EVERYTHING, 5)
        assert (page.adapters, page.total, page.stale) == ((one,), 1, True)
        with pytest.raises(NotFoundError):
            catalogue.get("two")
        for change in (lambda: catalogue.create(adapter("two"), random_vectors(2)), lambda: catalogue.delete("one")):
            with pytest.raises(UnavailableError):
                change()
        qdrant.requests.clear()
        catalogue.search(query_vectors(), EVERYTHING, 5)
        assert qdrant.requests == []  # not every request waits for a server that does not answer
        qdrant.broken = False
        clock.now += 2
        assert not catalogue.search(query_vectors(), EVERYTHING, 5).stale
        assert not catalogue.look_up("one").stale


def test_replica_can_serve_stale_reads_from_its_start(qdrant: FakeQdrant) -> None:
    with open_catalogue(QdrantServer(qdrant.url)) as first, ExitStack() as stack:
        first.create(adapter("one"), random_vectors(1))
        second = stack.enter_context(open_catalogue(QdrantServer(qdrant.url), stale_reads=True))
        qdrant.broken = True
        assert second.search(query_vectors(), EVERYTHING, 5).stale


def register(service: Service, name: str, text: str) -> None:
    card = adapter_pb2.Adapter(adapter_id=name, base_model="tiny", checkpoint_uri=f"at/{name}")
    examples = pb.ExamplePrompts(prompts=[prompt_to_proto(Prompt.of(text))])
    service.stub.CreateAdapter(pb.CreateAdapterRequest(adapter=card, examples=examples))


def test_service_reports_unavailable_or_stale_over_grpc(qdrant: FakeQdrant) -> None:
    question = pb.RetrieveAdaptersRequest(prompts=[prompt_to_proto(Prompt.of("red shoes"))])
    with (
        retrieval_service(QdrantServer(qdrant.url)) as strict,
        retrieval_service(QdrantServer(qdrant.url), stale_reads=True) as lenient,
    ):
        register(strict, "one", "red shoes")
        fresh = lenient.stub.RetrieveAdapters(question)
        assert not fresh.stale
        qdrant.broken = True
        with pytest.raises(grpc.RpcError) as caught:
            strict.stub.RetrieveAdapters(question, timeout=2)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        answer = lenient.stub.RetrieveAdapters(question, timeout=2)
        assert answer.stale
        assert answer.selections == fresh.selections
        assert lenient.stub.GetAdapter(pb.GetAdapterRequest(adapter_id="one")).stale
        assert lenient.stub.ListAdapters(pb.ListAdaptersRequest()).stale
        qdrant.broken = False
        assert strict.stub.RetrieveAdapters(question).selections == fresh.selections


def test_update_of_concurrently_deleted_adapter_is_not_found(replicas: tuple[Catalogue, Catalogue]) -> None:
    first, second = replicas
    first.create(adapter("one"), random_vectors(1))

    def change(one: Adapter) -> Adapter:
        second.delete("one")
        return replace(one, kind="changed")

    with pytest.raises(NotFoundError):
        first.update("one", change)
