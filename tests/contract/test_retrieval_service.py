"""RetrievalService over loopback gRPC: every method, and every error it owes its callers."""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from loraretriever.v1 import adapter_pb2, prompt_pb2, retrieval_service_pb2
from loraretriever.v1.retrieval_service_pb2_grpc import RetrievalServiceStub

from infra.contract.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidArgumentError,
    LoraRetrieverError,
    NotFoundError,
)
from infra.contract.prompt import ImagePart, Prompt
from infra.contract.retrieval import RetrievalStrategy
from infra.runtime.channel import ChannelOptions, sync_channel
from infra.runtime.error_table import from_rpc_error
from infra.runtime.images import ImageLimits
from infra.runtime.wire import prompt_to_proto
from retrieval_service.catalogue.catalogue import Catalogue
from retrieval_service.catalogue.qdrant import Qdrant, QdrantFolder
from retrieval_service.embedders.base import FloatArray
from retrieval_service.embedders.jina_v4 import JinaV4Embedder, JinaV4Options
from retrieval_service.indexing import Indexer
from retrieval_service.retriever import Retriever
from retrieval_service.server import RequestLimits, RetrievalServicer
from retrieval_service.settings import RetrievalDefaults
from tests.support.checkpoints.jina_v4 import HIDDEN, tiny_jina
from tests.support.harness.images import png_part
from tests.support.servers.retrieval_server import serving_retrieval

pb = retrieval_service_pb2
LIMITS = ImageLimits(max_images=3, max_bytes=200_000, max_pixels=300_000)
Failing = Callable[..., LoraRetrieverError]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> JinaV4Embedder:
    return JinaV4Embedder(tiny_jina().write(tmp_path_factory.mktemp("jina")), JinaV4Options(limits=LIMITS))


@pytest.fixture
def stub(embedder: JinaV4Embedder, tmp_path: Path) -> Iterator[RetrievalServiceStub]:
    with closing(Qdrant(QdrantFolder(tmp_path / "qdrant"))) as qdrant:
        catalogue = Catalogue(qdrant, "adapters", dim=embedder.dim, fingerprint=embedder.fingerprint)
        servicer = RetrievalServicer(
            embedder,
            catalogue,
            Retriever(embedder, catalogue, RetrievalDefaults(max_top_k=10)),
            Indexer(embedder, catalogue, max_examples=5),
            RequestLimits(max_prompts=6, images=LIMITS),
        )
        with serving_retrieval(servicer) as server, sync_channel(ChannelOptions(server.address)) as channel:
            yield RetrievalServiceStub(channel)  # type: ignore[no-untyped-call]


@pytest.fixture
def failing(stub: RetrievalServiceStub) -> Failing:
    """Call a method that must fail and return its error, after checking that another call still succeeds."""

    def call(method: str, request: Any) -> LoraRetrieverError:
        with pytest.raises(grpc.RpcError) as caught:
            getattr(stub, method)(request)
        stub.EmbedPrompts(pb.EmbedPromptsRequest(prompts=[prompt_of("still there?")]))
        return from_rpc_error(caught.value)

    return call


def prompt_of(text: str, images: Sequence[ImagePart] = ()) -> prompt_pb2.Prompt:
    return prompt_to_proto(Prompt.of(text, images))


def card(adapter_id: str, **fields: Any) -> adapter_pb2.Adapter:
    return adapter_pb2.Adapter(
        **{"adapter_id": adapter_id, "base_model": "tiny", "checkpoint_uri": f"adapters/{adapter_id}", **fields}
    )


def of_vectors(*vectors: Any) -> retrieval_service_pb2.ExampleVectors:
    return pb.ExampleVectors(vectors=[pb.Vector(float32=np.asarray(v, "<f4").tobytes()) for v in vectors])


def of_prompts(*texts: str) -> retrieval_service_pb2.ExamplePrompts:
    return pb.ExamplePrompts(prompts=[prompt_of(text) for text in texts])


def embedded(stub: RetrievalServiceStub, *prompts: prompt_pb2.Prompt) -> FloatArray:
    response = stub.EmbedPrompts(pb.EmbedPromptsRequest(prompts=prompts))
    return np.stack([np.frombuffer(vector.float32, "<f4") for vector in response.vectors])


def create(stub: RetrievalServiceStub, adapter_id: str, *texts: str, **fields: Any) -> adapter_pb2.Adapter:
    request = pb.CreateAdapterRequest(adapter=card(adapter_id, **fields), examples=of_prompts(*texts))
    adapter: adapter_pb2.Adapter = stub.CreateAdapter(request).adapter
    return adapter


def matches(stub: RetrievalServiceStub, prompt: prompt_pb2.Prompt, **options: Any) -> list[retrieval_service_pb2.Match]:
    request = pb.RetrieveAdaptersRequest(prompts=[prompt], options=pb.RetrievalOptions(**options))
    return list(stub.RetrieveAdapters(request).selections[0].matches)


def ids(found: Sequence[Any]) -> list[str]:
    return [one.adapter.adapter_id for one in found]


def test_adapter_is_retrieved_by_prompts_like_its_examples(stub: RetrievalServiceStub) -> None:
    create(stub, "shop", "buy red shoes", "buy a blue shirt")
    create(stub, "mail", "9 8 7 6 5 4", "3 2 1 0")
    vectors = embedded(stub, prompt_of("buy red shoes"), prompt_of("buy a blue shirt"), prompt_of("buy a red shirt"))
    mean = vectors[:2].mean(0)
    best, other = matches(stub, prompt_of("buy a red shirt"))
    assert best.adapter.adapter_id == "shop"
    assert best.similarity == pytest.approx(float(mean @ vectors[2] / np.linalg.norm(mean)), abs=1e-5)
    assert best.weight == pytest.approx(1 / (1 + np.exp((other.similarity - best.similarity) / 0.05)))
    assert best.weight + other.weight == pytest.approx(1)


def test_selections_have_order_of_prompts_and_searched_revision(stub: RetrievalServiceStub) -> None:
    create(stub, "letters", "abc", "bca")
    create(stub, "digits", "0123", "3210")
    request = pb.RetrieveAdaptersRequest(
        prompts=[prompt_of("0123"), prompt_of("abc"), prompt_of("3210")], options=pb.RetrievalOptions(top_k=1)
    )
    response = stub.RetrieveAdapters(request)
    assert [ids(selection.matches) for selection in response.selections] == [["digits"], ["letters"], ["digits"]]
    assert response.catalogue_revision == stub.ListAdapters(pb.ListAdaptersRequest()).catalogue_revision
    stub.DeleteAdapter(pb.DeleteAdapterRequest(adapter_id="digits"))
    assert stub.RetrieveAdapters(request).catalogue_revision != response.catalogue_revision


def test_retrieval_reports_times_of_embedding_and_search(stub: RetrievalServiceStub) -> None:
    create(stub, "letters", "abc", "bca")
    start = time.monotonic()
    timings = stub.RetrieveAdapters(pb.RetrieveAdaptersRequest(prompts=[prompt_of("abc")])).timings
    embed_s, search_s = (part.ToNanoseconds() / 1e9 for part in (timings.embed, timings.search))
    assert embed_s > 0
    assert search_s > 0
    assert embed_s + search_s < time.monotonic() - start


def test_images_change_retrieval(stub: RetrievalServiceStub) -> None:
    first, second = png_part(140, 140, 1), png_part(84, 140, 2)
    for name, image in (("first", first), ("second", second)):
        examples = pb.ExamplePrompts(prompts=[prompt_of("<image>tap", [image])])
        stub.CreateAdapter(pb.CreateAdapterRequest(adapter=card(name), examples=examples))
    assert ids(matches(stub, prompt_of("<image>tap", [second]), top_k=1)) == ["second"]
    assert ids(matches(stub, prompt_of("", [first]), top_k=1)) == ["first"]


def test_filters_and_options_apply(stub: RetrievalServiceStub) -> None:
    create(stub, "a", "alpha", kind="app", tags=["x"])
    create(stub, "b", "beta", kind="app", base_model="other")
    create(stub, "c", "gamma", kind="category")
    asked = prompt_of("alpha")
    assert set(ids(matches(stub, asked))) == {"a", "b", "c"}
    assert set(ids(matches(stub, asked, kind="app"))) == {"a", "b"}
    assert ids(matches(stub, asked, base_model="other")) == ["b"]
    assert ids(matches(stub, asked, tags=["x"])) == ["a"]
    assert set(ids(matches(stub, asked, exclude=["a"]))) == {"b", "c"}
    assert ids(matches(stub, asked, include=["c"])) == ["c"]
    assert ids(matches(stub, asked, min_similarity=0.9999)) == ["a"]
    assert matches(stub, prompt_of("99"), min_similarity=0.9999) == []
    uniform = matches(stub, asked, weighting=pb.WEIGHTING_UNIFORM)
    assert [match.weight for match in uniform] == pytest.approx([1 / 3] * 3)
    sharp = matches(stub, asked, weighting=pb.WEIGHTING_SOFTMAX, temperature=1e-6)
    assert sharp[0].weight == pytest.approx(1)
    plain = matches(stub, asked, weighting=pb.WEIGHTING_SIMILARITY)
    positive = [max(match.similarity, 0) for match in plain]
    assert [match.weight for match in plain] == pytest.approx([p / sum(positive) for p in positive])


def test_empty_catalogue_selects_nothing(stub: RetrievalServiceStub) -> None:
    assert matches(stub, prompt_of("anything")) == []


def test_vectors_have_unit_length_and_embedder_fingerprint(
    stub: RetrievalServiceStub, embedder: JinaV4Embedder
) -> None:
    prompts = [prompt_of("one"), prompt_of("two", [png_part(90, 60)])]
    response = stub.EmbedPrompts(pb.EmbedPromptsRequest(prompts=prompts))
    assert response.embedder_fingerprint == embedder.fingerprint
    assert np.linalg.norm(embedded(stub, *prompts), axis=1) == pytest.approx([1, 1])


def test_adapter_registered_with_vectors_equals_one_with_prompts(stub: RetrievalServiceStub) -> None:
    vectors = embedded(stub, prompt_of("abc"), prompt_of("bca"))
    create(stub, "prompts", "abc", "bca")
    stub.CreateAdapter(pb.CreateAdapterRequest(adapter=card("vectors"), vectors=of_vectors(*vectors)))
    stub.CreateAdapter(pb.CreateAdapterRequest(adapter=card("mean"), vectors=of_vectors(vectors.mean(0))))
    found = {match.adapter.adapter_id: match for match in matches(stub, prompt_of("cab"))}
    assert found["vectors"].similarity == pytest.approx(found["prompts"].similarity, abs=1e-6)
    assert found["mean"].similarity == pytest.approx(found["prompts"].similarity, abs=1e-6)
    assert [found[name].adapter.example_count for name in ("prompts", "vectors", "mean")] == [2, 2, 1]


def test_adapter_is_created_read_listed_updated_and_deleted(stub: RetrievalServiceStub) -> None:
    created = create(stub, "one", "abc", kind="app", rank=8, tags=["x"], description="first")
    assert created.revision
    assert created.example_count == 1
    assert created.HasField("update_time")
    got = stub.GetAdapter(pb.GetAdapterRequest(adapter_id="one")).adapter
    assert got == created
    listed = stub.ListAdapters(pb.ListAdaptersRequest())
    assert list(listed.adapters) == [created]
    update = pb.UpdateAdapterRequest(
        adapter=card("one", description="second", kind="category"),
        update_mask=FieldMask(paths=["description", "tags"]),
        expected_revision=created.revision,
    )
    updated = stub.UpdateAdapter(update).adapter
    assert (updated.description, updated.kind, list(updated.tags)) == ("second", "app", [])
    assert updated.revision != created.revision
    unmasked = pb.UpdateAdapterRequest(
        adapter=adapter_pb2.Adapter(adapter_id="one", kind="category"), examples=of_prompts("a", "b")
    )
    changed = stub.UpdateAdapter(unmasked).adapter
    assert (changed.kind, changed.description, changed.base_model) == ("category", "second", "tiny")
    assert changed.example_count == 2
    stub.DeleteAdapter(pb.DeleteAdapterRequest(adapter_id="one"))
    assert matches(stub, prompt_of("abc")) == []
    assert stub.ListAdapters(pb.ListAdaptersRequest()).total_size == 0


def test_pages_list_every_adapter_once(stub: RetrievalServiceStub) -> None:
    for name in "dbcae":
        create(stub, name, name, kind="app" if name < "e" else "category")
    seen, token = [], ""
    while True:
        page = stub.ListAdapters(pb.ListAdaptersRequest(page_size=2, page_token=token, kind="app"))
        seen.append([adapter.adapter_id for adapter in page.adapters])
        assert page.total_size == 4
        token = page.next_page_token
        if not token:
            break
    assert seen == [["a", "b"], ["c", "d"]]


BROKEN = png_part(90, 90).data[:-4000]


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


BOMB = b"".join(
    (
        b"\x89PNG\r\n\x1a\n",
        png_chunk(b"IHDR", struct.pack(">II5B", 60000, 60000, 8, 2, 0, 0, 0)),
        png_chunk(b"IDAT", zlib.compress(b"")),
    )
)


def image_prompt(data: bytes) -> prompt_pb2.Prompt:
    return prompt_of("look", [ImagePart(data, "image/png")])


EMPTY = prompt_pb2.Prompt()
BLANK = prompt_pb2.Prompt(messages=[prompt_pb2.Message(role=prompt_pb2.ROLE_USER, parts=[prompt_pb2.Part(text=" \n")])])


@pytest.mark.parametrize(
    ("bad", "field", "problem"),
    [
        ([], "prompts", "at least one prompt"),
        ([EMPTY], "prompts[0].messages", "is empty"),
        ([prompt_of("fine"), BLANK], "prompts[1].messages[0].parts", "is empty"),
        ([prompt_of("<image>")], "prompts[0].messages", "no text but placeholders"),
        ([prompt_of("fine"), image_prompt(BROKEN)], "prompts[1].messages[0].parts[0].image.data", "broken or cut off"),
        ([image_prompt(b"hello")], "prompts[0].messages[0].parts[0].image.data", "not a readable image"),
        ([image_prompt(BOMB)], "prompts[0].messages[0].parts[0].image.data", "pixels"),
        ([image_prompt(bytes(200_001))], "prompts[0].messages[0].parts[0].image.data", "bytes are too many"),
        ([prompt_of("x", [png_part(30, 30)] * 4)], "prompts[0].messages", "4 images are too many; at most 3"),
        ([prompt_of("x")] * 7, "prompts", "7 prompts are too many; send at most 6"),
    ],
)
def test_invalid_prompt_is_refused_with_field_path_by_every_method(
    failing: Failing, bad: list[prompt_pb2.Prompt], field: str, problem: str
) -> None:
    for method, request in (
        ("RetrieveAdapters", pb.RetrieveAdaptersRequest(prompts=bad)),
        ("EmbedPrompts", pb.EmbedPromptsRequest(prompts=bad)),
    ):
        error = failing(method, request)
        assert isinstance(error, InvalidArgumentError)
        assert error.field == field
        assert problem in error.message


@pytest.mark.parametrize(
    ("options", "field", "problem"),
    [
        ({"top_k": -1}, "options.top_k", "at least 1"),
        ({"top_k": 11}, "options.top_k", "at most 10"),
        ({"temperature": 0.0}, "options.temperature", "above 0"),
        ({"temperature": float("nan")}, "options.temperature", "finite"),
        ({"min_similarity": 1.5}, "options.min_similarity", "in [-1, 1]"),
        ({"min_similarity": float("nan")}, "options.min_similarity", "in [-1, 1]"),
        ({"include": ["fine", "not fine"]}, "options.include[1]", "is not an adapter id"),
        ({"weighting": 77}, "options.weighting", "77 is not a Weighting"),
    ],
)
def test_invalid_option_is_refused_with_field_path(
    failing: Failing, options: dict[str, Any], field: str, problem: str
) -> None:
    request = pb.RetrieveAdaptersRequest(prompts=[prompt_of("x")], options=pb.RetrievalOptions(**options))
    error = failing("RetrieveAdapters", request)
    assert isinstance(error, InvalidArgumentError)
    assert error.field == field
    assert problem in error.message


def test_top_k_zero_means_default(stub: RetrievalServiceStub) -> None:
    for name in "abcd":
        create(stub, name, name)
    assert len(matches(stub, prompt_of("a"), top_k=0)) == 3
    assert len(matches(stub, prompt_of("a"), top_k=10)) == 4


@pytest.mark.parametrize("strategy", RetrievalStrategy)
def test_every_strategy_applies_filters_limits_and_minimum(
    stub: RetrievalServiceStub, strategy: RetrievalStrategy
) -> None:
    create(stub, "a", "alpha", "alpine", "alphabet", kind="app", tags=["x"])
    create(stub, "b", "12", "1234", "4321", kind="app", base_model="other")
    create(stub, "c", "gamma", "gamut", kind="category")
    stub.CreateAdapter(pb.CreateAdapterRequest(adapter=card("mean", kind="app"), vectors=of_vectors(np.ones(HIDDEN))))
    asked, chosen = prompt_of("alpha"), pb.RetrievalStrategy.Value(f"RETRIEVAL_STRATEGY_{strategy.name}")
    found = matches(stub, asked, strategy=chosen, top_k=10)
    assert sorted(ids(found)) == ["a", "b", "c", "mean"]
    assert [match.similarity for match in found] == sorted((match.similarity for match in found), reverse=True)
    assert all(-1 <= match.similarity <= 1 for match in found)
    assert sum(match.weight for match in found) == pytest.approx(1)
    assert ids(found) == ids(matches(stub, asked, strategy=chosen, top_k=10))
    assert ids(matches(stub, asked, strategy=chosen, top_k=2)) == ids(found)[:2]
    assert set(ids(matches(stub, asked, strategy=chosen, kind="app"))) == {"a", "b", "mean"}
    assert ids(matches(stub, asked, strategy=chosen, base_model="other")) == ["b"]
    assert ids(matches(stub, asked, strategy=chosen, tags=["x"])) == ["a"]
    assert ids(matches(stub, asked, strategy=chosen, include=["c", "b"], exclude=["b"])) == ["c"]
    least = found[1].similarity - 1e-9
    assert ids(matches(stub, asked, strategy=chosen, min_similarity=least)) == ids(found)[:2]
    stub.DeleteAdapter(pb.DeleteAdapterRequest(adapter_id=found[0].adapter.adapter_id))
    assert ids(matches(stub, asked, strategy=chosen, top_k=10)) == ids(found)[1:]


def reason_of(stub: RetrievalServiceStub, **options: Any) -> str:
    """Return why retrieval for one prompt is empty."""
    request = pb.RetrieveAdaptersRequest(prompts=[prompt_of("x")], options=pb.RetrievalOptions(**options))
    (selection,) = stub.RetrieveAdapters(request).selections
    return pb.SelectionReason.Name(selection.reason).removeprefix("SELECTION_REASON_")


def test_empty_selection_has_reason(stub: RetrievalServiceStub) -> None:
    assert reason_of(stub) == "EMPTY_CATALOGUE"
    assert reason_of(stub, base_model="unknown") == "EMPTY_CATALOGUE"
    create(stub, "one", "x")
    assert reason_of(stub) == "UNSPECIFIED", "there is a match"
    assert reason_of(stub, base_model="unknown") == "NO_ADAPTERS_OF_MODEL"
    assert reason_of(stub, base_model="tiny", exclude=["one"]) == "NO_ADAPTERS_ALLOWED"
    assert reason_of(stub, min_similarity=1.0, include=["one"], exclude=["one"]) == "NO_ADAPTERS_ALLOWED"
    create(stub, "two", "something else entirely")
    assert reason_of(stub, include=["two"], min_similarity=1.0) == "BELOW_MINIMUM_SIMILARITY"


@pytest.mark.parametrize(
    ("options", "field", "hint"),
    [
        ({"include": ["clock", "gmial"]}, "options.include[1]", "did you mean gmail?"),
        ({"include": ["zzz"]}, "options.include[0]", "it has clock, gmail"),
        ({"kind": "apps"}, "options.kind", "did you mean app?"),
        ({"tags": ["nosuch"]}, "options.tags[0]", "leave it empty"),
        ({"kind": "nosuch", "base_model": "unknown"}, "options.kind", "it has app"),
    ],
)
def test_filter_that_names_what_catalogue_lacks_is_refused(
    stub: RetrievalServiceStub, options: dict[str, Any], field: str, hint: str
) -> None:
    assert reason_of(stub, **options) == "EMPTY_CATALOGUE"
    for name in ("clock", "gmail"):
        create(stub, name, name, kind="app")
    with pytest.raises(grpc.RpcError) as raised:
        reason_of(stub, **options)
    error = from_rpc_error(raised.value)
    assert isinstance(error, InvalidArgumentError)
    assert error.field == field
    assert hint in error.message
    assert reason_of(stub, exclude=["nosuch"]) == "UNSPECIFIED", "an adapter that is excluded need not exist"


def test_get_catalogue_returns_revision_size_and_embedder(stub: RetrievalServiceStub, embedder: JinaV4Embedder) -> None:
    empty = stub.GetCatalogue(pb.GetCatalogueRequest())
    assert (empty.embedder_fingerprint, empty.dimension) == (embedder.fingerprint, HIDDEN)
    assert (empty.adapter_count, empty.stale) == (0, False)
    create(stub, "one", "x")
    filled = stub.GetCatalogue(pb.GetCatalogueRequest())
    assert filled.adapter_count == 1
    assert filled.catalogue_revision == stub.ListAdapters(pb.ListAdaptersRequest()).catalogue_revision
    assert filled.catalogue_revision != empty.catalogue_revision


def test_adapter_vectors_are_returned_on_request(stub: RetrievalServiceStub, embedder: JinaV4Embedder) -> None:
    create(stub, "one", "abc", "def")
    plain = stub.GetAdapter(pb.GetAdapterRequest(adapter_id="one"))
    assert (len(plain.vectors), plain.embedder_fingerprint, plain.stale) == (0, "", False)
    full = stub.GetAdapter(pb.GetAdapterRequest(adapter_id="one", with_vectors=True))
    assert full.adapter == plain.adapter
    assert full.embedder_fingerprint == embedder.fingerprint
    vectors = np.stack([np.frombuffer(vector.float32, "<f4") for vector in full.vectors])
    np.testing.assert_allclose(vectors, embedded(stub, prompt_of("abc"), prompt_of("def")), atol=1e-6)


def test_id_of_other_checkpoint_is_refused_with_reason(stub: RetrievalServiceStub, failing: Failing) -> None:
    create(stub, "one", "x")
    other = pb.CreateAdapterRequest(adapter=card("one", checkpoint_uri="elsewhere/one"), examples=of_prompts("y"))
    error = failing("CreateAdapter", other)
    assert isinstance(error, AlreadyExistsError)
    for part in ("'one' exists already", "'adapters/one'", "'elsewhere/one'", "choose another id"):
        assert part in error.message


GOOD = np.eye(HIDDEN)[0]


@pytest.mark.parametrize(
    ("source", "field", "problem"),
    [
        ({}, "source", "is not set"),
        ({"examples": pb.ExamplePrompts()}, "examples.prompts", "at least one"),
        ({"examples": of_prompts(*"abcdef")}, "examples.prompts", "6 examples are too many; send at most 5"),
        ({"examples": pb.ExamplePrompts(prompts=[EMPTY])}, "examples.prompts[0].messages", "is empty"),
        (
            {"examples": pb.ExamplePrompts(prompts=[prompt_of("x"), image_prompt(BROKEN)])},
            "examples.prompts[1].messages[0].parts[0].image.data",
            "broken",
        ),
        ({"vectors": pb.ExampleVectors()}, "vectors.vectors", "is empty"),
        ({"vectors": of_vectors(GOOD, GOOD * np.nan)}, "vectors.vectors[1]", "NaN"),
        (
            {"vectors": of_vectors(GOOD, GOOD[:4])},
            "vectors.vectors[1]",
            "has 4 dimensions; this server's embedder has 32",
        ),
        ({"vectors": of_vectors(GOOD * 0)}, "vectors.vectors[0]", "all zeros"),
        ({"vectors": of_vectors(GOOD, -GOOD)}, "vectors.vectors", "cancel each other out"),
        ({"vectors": pb.ExampleVectors(vectors=[pb.Vector(float32=b"abc")])}, "vectors.vectors[0].float32", "3 bytes"),
        ({"vectors": of_vectors(*[GOOD] * 6)}, "vectors.vectors", "6 examples are too many"),
    ],
)
def test_invalid_examples_are_refused_and_register_nothing(
    stub: RetrievalServiceStub, failing: Failing, source: dict[str, Any], field: str, problem: str
) -> None:
    error = failing("CreateAdapter", pb.CreateAdapterRequest(adapter=card("one"), **source))
    assert isinstance(error, InvalidArgumentError)
    assert error.field == field
    assert problem in error.message
    assert stub.ListAdapters(pb.ListAdaptersRequest()).total_size == 0


@pytest.mark.parametrize(
    ("fields", "field", "problem"),
    [
        ({"adapter_id": ""}, "adapter.adapter_id", "is not an adapter id"),
        ({"adapter_id": "../up"}, "adapter.adapter_id", "is not an adapter id"),
        ({"base_model": " "}, "adapter.base_model", "is empty"),
        ({"rank": -1}, "adapter.rank", "negative"),
        ({"revision": "mine"}, "adapter.revision", "set by the catalogue"),
        ({"example_count": 3}, "adapter.example_count", "set by the catalogue"),
    ],
)
def test_invalid_adapter_is_refused_with_field_path(
    failing: Failing, fields: dict[str, Any], field: str, problem: str
) -> None:
    request = pb.CreateAdapterRequest(adapter=card(**{"adapter_id": "one", **fields}), examples=of_prompts("x"))
    error = failing("CreateAdapter", request)
    assert isinstance(error, InvalidArgumentError)
    assert error.field == field
    assert problem in error.message


def test_taken_id_already_exists(stub: RetrievalServiceStub, failing: Failing) -> None:
    first = create(stub, "one", "x")
    error = failing("CreateAdapter", pb.CreateAdapterRequest(adapter=card("one"), examples=of_prompts("y")))
    assert isinstance(error, AlreadyExistsError)
    assert "'one'" in error.message
    assert stub.GetAdapter(pb.GetAdapterRequest(adapter_id="one")).adapter == first


def test_unknown_adapter_is_not_found(failing: Failing) -> None:
    for method, request in (
        ("GetAdapter", pb.GetAdapterRequest(adapter_id="who")),
        ("DeleteAdapter", pb.DeleteAdapterRequest(adapter_id="who")),
        ("UpdateAdapter", pb.UpdateAdapterRequest(adapter=card("who", kind="app"))),
    ):
        error = failing(method, request)
        assert isinstance(error, NotFoundError)
        assert "'who'" in error.message
    for method, request in (
        ("GetAdapter", pb.GetAdapterRequest()),
        ("DeleteAdapter", pb.DeleteAdapterRequest(adapter_id="no name")),
    ):
        error = failing(method, request)
        assert isinstance(error, InvalidArgumentError)
        assert error.field == "adapter_id"


def test_invalid_update_is_refused_with_field_path(stub: RetrievalServiceStub, failing: Failing) -> None:
    first = create(stub, "one", "x")
    stale = pb.UpdateAdapterRequest(adapter=card("one", kind="app"), expected_revision="stale")
    assert isinstance(failing("UpdateAdapter", stale), ConflictError)
    for update, field in (
        ({"adapter": card("one"), "update_mask": FieldMask(paths=["kind", "revision"])}, "update_mask.paths[1]"),
        ({"adapter": card("one", base_model=""), "update_mask": FieldMask(paths=["base_model"])}, "adapter.base_model"),
        ({"adapter": adapter_pb2.Adapter(adapter_id="one")}, "update_mask"),
        ({"adapter": card("one"), "vectors": of_vectors(GOOD[:3])}, "vectors.vectors[0]"),
    ):
        error = failing("UpdateAdapter", pb.UpdateAdapterRequest(**update))
        assert isinstance(error, InvalidArgumentError)
        assert error.field == field
    assert stub.GetAdapter(pb.GetAdapterRequest(adapter_id="one")).adapter == first


@pytest.mark.parametrize(
    ("request_fields", "field"),
    [
        ({"page_size": -1}, "page_size"),
        ({"page_token": "%%%"}, "page_token"),
        ({"page_token": "é"}, "page_token"),
        ({"page_token": "IA=="}, "page_token"),
    ],
)
def test_invalid_page_is_refused_with_field_path(failing: Failing, request_fields: dict[str, Any], field: str) -> None:
    error = failing("ListAdapters", pb.ListAdaptersRequest(**request_fields))
    assert isinstance(error, InvalidArgumentError)
    assert error.field == field


def test_eight_concurrent_callers_create_retrieve_and_delete_without_error(stub: RetrievalServiceStub) -> None:
    create(stub, "constant", "zzz")
    for caller in range(8):  # A kind that no adapter has cannot be asked for.
        create(stub, f"kept{caller}", "kept", kind=f"kind{caller}", base_model="other")
    alone = embedded(stub, prompt_of("zzz"))

    def work(caller: int) -> None:
        for turn in range(3):
            mine = f"c{caller}-{turn}"
            create(stub, mine, f"{caller} {turn}", "more", kind=f"kind{caller}")
            assert ids(matches(stub, prompt_of(f"{caller} {turn}"), kind=f"kind{caller}", base_model="tiny")) == [mine]
            assert ids(matches(stub, prompt_of("zzz"), top_k=1)) == ["constant"]
            np.testing.assert_allclose(embedded(stub, prompt_of("zzz")), alone, atol=1e-6)
            stub.DeleteAdapter(pb.DeleteAdapterRequest(adapter_id=mine))
            assert matches(stub, prompt_of(f"{caller} {turn}"), kind=f"kind{caller}", base_model="tiny") == []

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert stub.ListAdapters(pb.ListAdaptersRequest(base_model="tiny")).total_size == 1
