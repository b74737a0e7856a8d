"""Several services on one Qdrant server: they see each other's changes, and live through its absence."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from loraretriever.v1 import adapter_pb2
from loraretriever.v1 import retrieval_service_pb2 as pb

from infra.contract.adapter import Adapter
from infra.contract.errors import (
    ConfigurationError,
    FailedPreconditionError,
    NotFoundError,
    UnavailableError,
)
from infra.contract.prompt import Prompt
from infra.contract.retrieval import RetrievalStrategy, SelectionReason
from infra.runtime.deadline import bind_deadline
from infra.runtime.wire import prompt_to_proto
from retrieval_service.catalogue import backup
from retrieval_service.catalogue import catalogue as catalogue_module
from retrieval_service.catalogue import snapshot as snapshot_module
from retrieval_service.catalogue.adapter_store import AdapterStore
from retrieval_service.catalogue.catalogue import Catalogue
from retrieval_service.catalogue.points import AdapterFilter, AdapterVectors
from retrieval_service.catalogue.qdrant import Qdrant, QdrantServer
from retrieval_service.embedders.base import normalise
from retrieval_service.strategies.examples import ExampleSet
from retrieval_service.strategies.scale import Similarities
from tests.support.servers.fake_qdrant import FakeQdrant, fake_qdrant
from tests.support.servers.retrieval_server import Service, retrieval_service

DIM = 8
EVERYTHING = AdapterFilter()


def adapter(name: str, **fields: Any) -> Adapter:
    return Adapter(name, **{"base_model": "tiny", "checkpoint_uri": f"at/{name}", **fields})


def vectors(seed: int, count: int = 4) -> AdapterVectors:
    return AdapterVectors.of(list(np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)), DIM)


def asked(count: int = 3) -> Any:
    return normalise(np.random.default_rng(99).normal(size=(count, DIM)))


@contextmanager
def opened(server: QdrantServer, **options: Any) -> Iterator[Catalogue]:
    with closing(Qdrant(server)) as qdrant:
        yield Catalogue(qdrant, "adapters", dim=DIM, fingerprint="one", **options)


@pytest.fixture
def qdrant() -> Iterator[FakeQdrant]:
    with fake_qdrant() as server:
        yield server


@pytest.fixture
def replicas(qdrant: FakeQdrant) -> Iterator[tuple[Catalogue, Catalogue]]:
    with opened(QdrantServer(qdrant.url)) as first, opened(QdrantServer(qdrant.url)) as second:
        yield first, second


def names(catalogue: Catalogue, strategy: RetrievalStrategy = RetrievalStrategy.CENTROID) -> set[str]:
    found = catalogue.search(asked(1), EVERYTHING, 99, strategy).matches[0]
    return {one.adapter.adapter_id for one in found}


@pytest.mark.parametrize("strategy", RetrievalStrategy)
def test_change_through_one_replica_is_in_next_answer_of_other(
    replicas: tuple[Catalogue, Catalogue], strategy: RetrievalStrategy
) -> None:
    first, second = replicas
    assert names(second, strategy) == set()
    first.create(adapter("one"), vectors(1))
    assert names(second, strategy) == {"one"}
    second.create(adapter("two"), vectors(2))
    assert names(first, strategy) == {"one", "two"}
    first.update("two", lambda two: replace(two, kind="changed"), vectors(3))
    assert second.search(asked(), AdapterFilter(kind="changed"), 9, strategy).matches == (
        first.search(asked(), AdapterFilter(kind="changed"), 9, strategy).matches
    )
    first.delete("one")
    assert names(second, strategy) == {"two"}
    result = [each.search(asked(), EVERYTHING, 9, strategy) for each in replicas]
    assert result[0] == result[1]


def test_answer_after_deletion_was_acknowledged_does_not_name_adapter(
    replicas: tuple[Catalogue, Catalogue],
) -> None:
    first, second = replicas
    first.create(adapter("constant"), vectors(0))
    gone: set[str] = set()
    stop = threading.Event()

    def search() -> int:
        answers = 0
        while not stop.is_set():
            before = set(gone)
            for strategy in (RetrievalStrategy.CALIBRATED, RetrievalStrategy.NEAREST_EXAMPLES):
                found = names(second, strategy)
                assert "constant" in found
                assert not found & before
                answers += 1
        return answers

    with ThreadPoolExecutor(3) as pool:
        searches = [pool.submit(search) for _ in range(2)]
        try:
            for turn in range(12):
                first.create(adapter(f"a{turn}"), vectors(turn))
                assert f"a{turn}" in names(second)
                first.delete(f"a{turn}")
                gone.add(f"a{turn}")
        finally:
            stop.set()
        assert all(one.result() > 0 for one in searches)


def test_only_what_has_changed_is_read_again(qdrant: FakeQdrant, replicas: tuple[Catalogue, Catalogue]) -> None:
    first, second = replicas
    for turn in range(5):
        first.create(adapter(f"a{turn}"), vectors(turn))
    names(second)
    read: list[int] = []

    def counted(store: AdapterStore, point_ids: Any) -> Any:
        read.append(len(point_ids))
        return original(store, point_ids)

    original = AdapterStore.read_vectors
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AdapterStore, "read_vectors", counted)
        first.create(adapter("new"), vectors(7))
        first.delete("a0")
        assert names(second) == {"a1", "a2", "a3", "a4", "new"}
        qdrant.requests.clear()
        assert names(second) == {"a1", "a2", "a3", "a4", "new"}
    assert read == [1]
    assert [one for one in qdrant.requests if not one.startswith("GET /collections/adapters")] == []


def test_change_whose_revision_was_lost_is_found_within_trusted_time(
    qdrant: FakeQdrant, replicas: tuple[Catalogue, Catalogue], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = replicas
    first.create(adapter("one"), vectors(1))
    assert names(second) == {"one"}
    with monkeypatch.context() as patch:
        patch.setattr(AdapterStore, "bump_revision", lambda store: None)  # as if the service had died right before
        first.delete("one")
    monkeypatch.setattr(snapshot_module, "_FULL_CHECK_INTERVAL_S", 0.0)
    assert names(second) == set()


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
def test_memory_and_qdrant_find_same(qdrant: FakeQdrant, wanted: AdapterFilter, top_k: int) -> None:
    with opened(QdrantServer(qdrant.url)) as in_memory, opened(QdrantServer(qdrant.url), memory_vectors=0) as by_qdrant:
        for turn in range(20):
            kind, tags = ("app", ("x", "y")) if turn % 3 else ("category", ())
            in_memory.create(adapter(f"a{turn}", kind=kind, tags=tags), vectors(turn % 15, 1 + turn % 15 % 4))
        mine, theirs = (each.search(asked(), wanted, top_k) for each in (in_memory, by_qdrant))
        for left, right in zip(mine.matches, theirs.matches, strict=True):
            assert [one.adapter for one in left] == [one.adapter for one in right]
            assert [one.similarity for one in left] == pytest.approx([one.similarity for one in right], abs=1e-5)
        assert mine.revision == theirs.revision


def test_catalogue_too_large_for_memory_says_which_strategy_works(qdrant: FakeQdrant) -> None:
    with opened(QdrantServer(qdrant.url), memory_vectors=5) as catalogue:
        catalogue.create(adapter("one"), vectors(1, 4))
        assert names(catalogue, RetrievalStrategy.CALIBRATED) == {"one"}
        catalogue.create(adapter("two"), vectors(2, 4))
        with pytest.raises(FailedPreconditionError, match=r"more than 5 example vectors.*'calibrated'.*'centroid'"):
            names(catalogue, RetrievalStrategy.CALIBRATED)
        assert names(catalogue) == {"one", "two"}
        catalogue.delete("one")
        assert names(catalogue, RetrievalStrategy.CALIBRATED) == {"two"}


def test_search_without_matches_says_whether_catalogue_or_filter_is_empty(qdrant: FakeQdrant) -> None:
    wanted = AdapterFilter(base_model="other")
    with opened(QdrantServer(qdrant.url)) as in_memory, opened(QdrantServer(qdrant.url), memory_vectors=0) as by_qdrant:
        assert in_memory.search(asked(1), wanted, 3).reason is SelectionReason.EMPTY_CATALOGUE
        in_memory.create(adapter("one"), vectors(1))
        for catalogue in (in_memory, by_qdrant):
            result = catalogue.search(asked(1), wanted, 3)
            assert (result.matches, result.reason) == (((),), SelectionReason.NO_ADAPTERS_OF_MODEL)
            excluding = AdapterFilter(base_model="tiny", exclude=("one",))
            assert catalogue.search(asked(1), excluding, 3).reason is SelectionReason.NO_ADAPTERS_ALLOWED
            assert catalogue.search(asked(1), EVERYTHING, 3).reason is None


def test_without_qdrant_every_call_is_unavailable_and_works_again_when_it_is_back(qdrant: FakeQdrant) -> None:
    with opened(QdrantServer(qdrant.url)) as catalogue:
        catalogue.create(adapter("one"), vectors(1))
        calls = (
            lambda: names(catalogue),
            lambda: catalogue.get("one"),
            lambda: catalogue.page(EVERYTHING, 5),
            lambda: catalogue.create(adapter("two"), vectors(2)),
            lambda: catalogue.delete("one"),
        )
        qdrant.broken = True
        for call in calls:
            with pytest.raises(UnavailableError, match=r"503.*retry"):
                call()
        qdrant.broken = False
        for call in calls:
            call()
        assert names(catalogue) == {"two"}


def test_last_known_catalogue_is_read_where_that_is_allowed_and_says_so(
    qdrant: FakeQdrant, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(QdrantServer(qdrant.url), stale_reads=True) as catalogue:
        one = catalogue.create(adapter("one"), vectors(1))
        fresh = catalogue.search(asked(), EVERYTHING, 5, RetrievalStrategy.CALIBRATED)
        assert not fresh.stale
        qdrant.broken = True
        stale = catalogue.search(asked(), EVERYTHING, 5, RetrievalStrategy.CALIBRATED)
        assert stale == replace(fresh, stale=True)
        looked_up = catalogue.look_up("one", with_vectors=True)
        assert (looked_up.adapter, looked_up.stale, len(looked_up.vectors)) == (one, True, 4)
        page = catalogue.page(EVERYTHING, 5)
        assert (page.adapters, page.total, page.stale) == ((one,), 1, True)
        with pytest.raises(NotFoundError):
            catalogue.get("two")
        for change in (lambda: catalogue.create(adapter("two"), vectors(2)), lambda: catalogue.delete("one")):
            with pytest.raises(UnavailableError):
                change()
        qdrant.requests.clear()
        catalogue.search(asked(), EVERYTHING, 5)
        assert qdrant.requests == []  # not every request waits for a server that does not answer
        qdrant.broken = False
        monkeypatch.setattr(catalogue_module, "_STALE_PAUSE_S", 0.0)
        catalogue._pause_ends = 0.0
        assert not catalogue.search(asked(), EVERYTHING, 5).stale
        assert not catalogue.look_up("one").stale


def test_replica_knows_catalogue_from_its_start_on(qdrant: FakeQdrant) -> None:
    with opened(QdrantServer(qdrant.url)) as first, ExitStack() as stack:
        first.create(adapter("one"), vectors(1))
        second = stack.enter_context(opened(QdrantServer(qdrant.url), stale_reads=True))
        qdrant.broken = True
        assert second.search(asked(), EVERYTHING, 5).stale


@contextmanager
def black_hole() -> Iterator[str]:
    """A server that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield f"http://127.0.0.1:{silent.getsockname()[1]}"


def test_silent_qdrant_takes_half_of_callers_deadline_at_most() -> None:
    with black_hole() as url, closing(Qdrant(QdrantServer(url, timeout_s=30))) as qdrant:
        bind_deadline(1.0)
        try:
            started = time.monotonic()
            with pytest.raises(UnavailableError, match="does not answer"), qdrant.session() as client:
                client.get_collections()
            assert time.monotonic() - started < 0.95
        finally:
            bind_deadline(None)


def register(service: Service, name: str, text: str) -> None:
    card = adapter_pb2.Adapter(adapter_id=name, base_model="tiny", checkpoint_uri=f"at/{name}")
    examples = pb.ExamplePrompts(prompts=[prompt_to_proto(Prompt.of(text))])
    service.stub.CreateAdapter(pb.CreateAdapterRequest(adapter=card, examples=examples))


def test_service_says_unavailable_or_stale_over_grpc(qdrant: FakeQdrant) -> None:
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


@pytest.mark.filterwarnings("ignore:Api key is used")
def test_key_is_sent_and_wrong_one_is_said() -> None:
    with fake_qdrant(api_key="secret") as server:
        with opened(QdrantServer(server.url, "secret")) as catalogue:
            catalogue.create(adapter("one"), vectors(1))
            assert names(catalogue) == {"one"}
        for key in (None, "wrong"):
            with (
                pytest.raises(FailedPreconditionError, match="refuses the key; check --qdrant-api-key"),
                opened(QdrantServer(server.url, key)),
            ):
                pass


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate of 127.0.0.1 and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command is not installed")
    folder = tmp_path_factory.mktemp("tls")
    files = folder / "server.pem", folder / "server.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-out", str(files[0]), "-keyout", str(files[1])),
        ],
        check=True,
        capture_output=True,
    )
    return files


def test_server_is_reached_over_tls_by_its_authority_only(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with fake_qdrant(api_key="secret", tls=context) as server:
        assert server.url.startswith("https://")
        with opened(QdrantServer(server.url, "secret", tls_ca=certificate[0])) as catalogue:
            catalogue.create(adapter("one"), vectors(1))
            assert names(catalogue) == {"one"}
        with pytest.raises(UnavailableError, match="certificate"), opened(QdrantServer(server.url, "secret")):
            pass
    (tmp_path / "no.pem").write_text("no certificate")
    for file in (tmp_path / "no.pem", tmp_path / "nothing"):
        with pytest.raises(ConfigurationError, match="--qdrant-tls-ca"):
            Qdrant(QdrantServer("https://127.0.0.1:9", tls_ca=file))


def test_name_that_moves_to_empty_catalogue_leaves_nothing_behind(
    qdrant: FakeQdrant, replicas: tuple[Catalogue, Catalogue]
) -> None:
    first, second = replicas
    with closing(Qdrant(QdrantServer(qdrant.url))) as other, other.session() as client:
        empty = backup.take_backup(client, "adapters")
        first.create(adapter("one"), vectors(1))
        assert names(second) == {"one"}
        backup.restore_backup(client, "adapters", empty, replace=True, indexed=False)
    assert names(second) == set()
    assert second.search(asked(1), EVERYTHING, 9).revision == second.page(EVERYTHING, 9).revision


def test_catalogue_too_large_for_memory_is_not_read_again_until_it_changes(qdrant: FakeQdrant) -> None:
    with opened(QdrantServer(qdrant.url), memory_vectors=5) as catalogue:
        catalogue.create(adapter("one"), vectors(1, 9))
        assert names(catalogue) == {"one"}
        qdrant.requests.clear()
        assert names(catalogue) == {"one"}
        assert [one for one in qdrant.requests if "scroll" in one] == []
        catalogue.update("one", lambda one: one, vectors(1, 2))
        assert names(catalogue, RetrievalStrategy.CALIBRATED) == {"one"}


def test_update_of_adapter_that_is_deleted_meanwhile_finds_none(replicas: tuple[Catalogue, Catalogue]) -> None:
    first, second = replicas
    first.create(adapter("one"), vectors(1))

    def change(one: Adapter) -> Adapter:
        second.delete("one")
        return replace(one, kind="changed")

    with pytest.raises(NotFoundError):
        first.update("one", change)


def test_one_strategy_does_not_wait_while_another_is_fitted(
    replicas: tuple[Catalogue, Catalogue], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = replicas
    first.create(adapter("one"), vectors(1))
    fitting, may_go_on = threading.Event(), threading.Event()

    class Slow(Similarities):
        def __init__(self, strategy: RetrievalStrategy, *others: Any) -> None:
            if strategy is RetrievalStrategy.CALIBRATED:
                fitting.set()
                assert may_go_on.wait(30)
            super().__init__(strategy, *others)

    monkeypatch.setattr(snapshot_module, "Similarities", Slow)
    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(names, first, RetrievalStrategy.CALIBRATED)
        try:
            assert fitting.wait(30)
            assert pool.submit(names, first).result(timeout=30) == {"one"}
        finally:
            may_go_on.set()
        assert slow.result() == {"one"}


def test_kinds_that_decide_nothing_share_one_fit(
    replicas: tuple[Catalogue, Catalogue], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = replicas
    for turn in range(12):
        first.create(adapter(f"a{turn}", kind=f"kind{turn}"), vectors(turn))
    made: list[str] = []

    class Counted(Similarities):
        def __init__(self, strategy: RetrievalStrategy, examples: ExampleSet, kind: str = "") -> None:
            made.append(kind)
            super().__init__(strategy, examples, kind)

    monkeypatch.setattr(snapshot_module, "Similarities", Counted)
    for turn in range(12):
        assert first.search(asked(1), AdapterFilter(kind=f"kind{turn}"), 9, RetrievalStrategy.CALIBRATED).matches[0]
    assert made == [""]
