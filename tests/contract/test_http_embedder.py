"""The http embedder against a real HTTP server: what it asks, what it accepts, and how it meets every failure."""

from __future__ import annotations

import base64
import logging
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from loraretriever.v1 import adapter_pb2, retrieval_service_pb2
from loraretriever.v1.retrieval_service_pb2_grpc import RetrievalServiceStub

from infra.contract.errors import (
    ConfigurationError,
    DeadlineError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    LoraRetrieverError,
    OverloadedError,
    UnavailableError,
)
from infra.contract.prompt import Prompt
from infra.runtime.channel import ChannelOptions, sync_channel
from infra.runtime.deadline import bind_deadline
from infra.runtime.error_table import from_rpc_error
from infra.runtime.settings import ServerOptions
from infra.runtime.wire import prompt_to_proto
from retrieval_service.embedders import http_client
from retrieval_service.embedders.base import normalise
from retrieval_service.embedders.batcher import BatchedEmbedder
from retrieval_service.embedders.http import HttpEmbedder, HttpOptions
from retrieval_service.embedders.http_client import Endpoint
from retrieval_service.settings import EndpointSettings, QdrantSettings, RetrievalSettings
from tests.support.harness.images import png_part
from tests.support.harness.part_embedder import DIM, vector_of
from tests.support.servers.embeddings_server import EmbeddingsServer, correct_response
from tests.support.servers.retrieval_server import serving_settings

pb = retrieval_service_pb2
KEY = "sk-secret"
TEXTS = ("one", "two", "three")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(http_client, "_FIRST_PAUSE_S", 0.001)


@pytest.fixture
def server() -> Iterator[EmbeddingsServer]:
    with EmbeddingsServer() as running:
        yield running


def embedder(server: EmbeddingsServer, timeout_s: float = 5, retries: int = 2, **options: Any) -> HttpEmbedder:
    """Return an embedder that is configured; what the probe asked is forgotten."""
    endpoint = Endpoint(server.url, "tiny", KEY, timeout_s, retries)
    made = HttpEmbedder(endpoint, HttpOptions(**{"wait_s": 0, **options}))
    server.requests.clear()
    return made


def test_texts_become_unit_vectors_in_their_order(server: EmbeddingsServer) -> None:
    vectors = embedder(server, batch_size=2).embed([Prompt.of(text) for text in TEXTS])
    np.testing.assert_allclose(vectors, [vector_of(text) for text in TEXTS], atol=1e-6)
    assert [len(request["input"]) for request in server.requests] == [2, 1]
    assert server.requests[0]["path"] == "/v1/embeddings"
    assert server.requests[0]["model"] == "tiny"
    assert "dimensions" not in server.requests[0]
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_either_encoding_gives_same(server: EmbeddingsServer, encoding: str) -> None:
    vectors = embedder(server, encoding=encoding).embed_texts(TEXTS)
    assert server.requests[0]["encoding_format"] == encoding
    np.testing.assert_allclose(vectors, [vector_of(text) for text in TEXTS], atol=1e-6)


def test_configured_dimensions_are_requested_without_probe(server: EmbeddingsServer) -> None:
    short = HttpEmbedder(Endpoint(server.url, "tiny"), HttpOptions(dim=4))
    assert server.requests == []
    np.testing.assert_allclose(short.embed_texts(["a"])[0], normalise(vector_of("a")[:4]), atol=1e-6)
    assert server.requests[0]["dimensions"] == 4
    assert "Authorization" not in server.headers[0]


def test_dimensions_are_probed_at_start(server: EmbeddingsServer) -> None:
    assert embedder(server).dim == DIM


def test_prompt_is_put_before_every_text(server: EmbeddingsServer) -> None:
    embedder(server, prompt="query: ").embed([Prompt.of("x")])
    assert server.inputs == ["query: x"]


def test_images_are_ignored_and_refused_without_text(server: EmbeddingsServer) -> None:
    text_only = embedder(server)
    vector = text_only.embed([Prompt.of("<image>x", [png_part(30, 30)])])
    np.testing.assert_allclose(vector[0], vector_of("x"), atol=1e-6)
    with pytest.raises(InvalidArgumentError, match=r"only images, .* reads only text; add a text") as caught:
        text_only.embed([Prompt.of("x"), Prompt.of("<image>", [png_part(30, 30)])])
    assert caught.value.field == "[1].messages"


def test_images_are_sent_to_endpoint_that_accepts_them(server: EmbeddingsServer) -> None:
    image = png_part(30, 30)
    encoded = base64.b64encode(image.data).decode()
    vector = embedder(server, images=True).embed([Prompt.of("x", [image])])
    assert server.inputs == [{"text": "x"}, {"image": encoded}]
    expected = 0.7 * vector_of("x").astype(np.float64) + 0.3 * vector_of(encoded)
    np.testing.assert_allclose(vector[0], normalise(expected), atol=1e-6)


@pytest.mark.parametrize("step", [429, 500, 502, 503, (429, {"Retry-After": "0.01"}), 504])
def test_transient_failures_are_retried(server: EmbeddingsServer, step: Any) -> None:
    patient = embedder(server)
    server.script += [step, step]
    np.testing.assert_allclose(patient.embed_texts(["a"])[0], vector_of("a"), atol=1e-6)
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("step", "error", "expected", "tries"),
    [
        (429, OverloadedError, "is overloaded", 3),
        (500, UnavailableError, "responded with 500", 3),
        (401, FailedPreconditionError, "refuses the key .* check --embedder-api-key", 1),
        (404, FailedPreconditionError, "responded with 404 .* check --embedder-url and --embedder-model", 1),
        (422, InvalidArgumentError, "refuses this with 422", 1),
        (301, FailedPreconditionError, "responded with 301", 1),
    ],
)
def test_failures_are_reported_without_key(
    server: EmbeddingsServer, step: int, error: type[LoraRetrieverError], expected: str, tries: int
) -> None:
    impatient = embedder(server)
    server.script += [step] * 3
    with pytest.raises(error, match=expected) as caught:
        impatient.embed_texts(["a"])
    assert len(server.requests) == tries
    assert KEY not in str(caught.value)
    assert "key ***" in str(caught.value)


def of(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    def changed(request: dict[str, Any]) -> Any:
        answer = correct_response(request)
        return change(answer) or answer

    return changed


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (b"<html>hello</html>", "does not respond with JSON"),
        (b"[]", "does not respond like an embeddings endpoint"),
        (b'{"data": [3]}', "does not respond like an embeddings endpoint"),
        (of(lambda answer: {"data": []}), "0 vectors for 1 inputs"),
        (of(lambda answer: answer["data"][0].update(index=7)), r"vectors with the indexes \[7\] for 1"),
        (of(lambda answer: answer["data"][0].update(embedding=[math.nan] * DIM)), "NaN"),
        (of(lambda answer: answer["data"][0].update(embedding=[0.0] * DIM)), "only zeros"),
        (of(lambda answer: answer["data"][0].update(embedding="%%%")), "embeddings endpoint"),
        (of(lambda answer: answer["data"][0].update(embedding=[])), "not a list of numbers"),
        (of(lambda answer: answer["data"][0].update(embedding=None)), "embeddings endpoint"),
        (of(lambda answer: answer["data"][0].update(embedding=[1.0] * 5)), f"5 dimensions, not {DIM}"),
    ],
)
def test_invalid_response_is_refused_and_next_one_succeeds(server: EmbeddingsServer, step: Any, expected: str) -> None:
    asking = embedder(server)
    server.script.append(step)
    with pytest.raises(InternalError, match=expected):
        asking.embed_texts(["a"])
    np.testing.assert_allclose(asking.embed_texts(["a"])[0], vector_of("a"), atol=1e-6)


def test_endpoint_that_ignores_dimensions_is_reported(server: EmbeddingsServer) -> None:
    server.script.append(lambda request: correct_response({**request, "dimensions": None}))
    with pytest.raises(InternalError, match=r"8 dimensions, not 4; it ignores `dimensions`"):
        HttpEmbedder(Endpoint(server.url, "tiny"), HttpOptions(dim=4)).embed_texts(["a"])


def test_slow_endpoint_times_out(server: EmbeddingsServer) -> None:
    asking = embedder(server, timeout_s=0.05, retries=1)
    server.script += [0.5, 0.5]
    with pytest.raises(UnavailableError, match=r"did not respond within 0.05 s; see --embedder-timeout-s"):
        asking.embed_texts(["a"])
    give_up = time.monotonic() + 10
    while len(server.requests) < 2 and time.monotonic() < give_up:
        time.sleep(0.01)  # a busy machine may read the second request after its timeout
    assert len(server.requests) == 2


def test_retries_respect_deadline(server: EmbeddingsServer) -> None:
    asking = embedder(server, retries=10)
    server.script += [(503, {"Retry-After": "30"})] * 10
    started = time.monotonic()
    with closing(BatchedEmbedder(asking)) as batched:
        bind_deadline(2)
        try:
            with pytest.raises(UnavailableError):  # at once, since the pause is longer than the caller waits
                batched.embed([Prompt.of("a")])
        finally:
            bind_deadline(None)
        server.script[:] = [1.0]
        bind_deadline(0.05)
        try:
            with pytest.raises(DeadlineError):
                batched.embed([Prompt.of("b")])
        finally:
            bind_deadline(None)
    assert time.monotonic() - started < 10


def test_refused_text_fails_only_its_own_call(server: EmbeddingsServer) -> None:
    server.refused = {"odd"}
    with closing(BatchedEmbedder(embedder(server, parallel=1))) as batched, ThreadPoolExecutor(8) as pool:
        calls = {name: pool.submit(batched.embed, [Prompt.of(name)]) for name in ("a", "b", "odd", "c", "d")}
        for name, call in calls.items():
            if name == "odd":
                with pytest.raises(InvalidArgumentError, match="refuses this with 400") as caught:
                    call.result()
                assert caught.value.field == "[0].messages"
            else:
                np.testing.assert_allclose(call.result()[0], vector_of(name), atol=1e-6)


def test_start_waits_for_endpoint_that_is_not_up_yet(server: EmbeddingsServer) -> None:
    server.script += [503] * 3
    late = HttpEmbedder(Endpoint(server.url, "tiny", retries=2), HttpOptions(wait_s=30))
    assert late.dim == DIM
    with pytest.raises(UnavailableError, match=r"127.0.0.1:1/v1/embeddings cannot be reached"):
        HttpEmbedder(Endpoint("http://127.0.0.1:1/v1", "tiny", retries=0), HttpOptions(wait_s=0))


def test_fingerprint_contains_vector_settings_but_not_key(server: EmbeddingsServer) -> None:
    fingerprint = embedder(server).fingerprint
    assert f"url={server.url}/embeddings model=tiny dim={DIM} prompt=''" in fingerprint
    assert KEY not in fingerprint
    others = {embedder(server, prompt="q: ").fingerprint, embedder(server, dim=4).fingerprint}
    others |= {HttpEmbedder(Endpoint(server.url, "big"), HttpOptions()).fingerprint}
    others |= {HttpEmbedder(Endpoint(f"{server.url}/x", "tiny"), HttpOptions()).fingerprint}
    assert fingerprint not in others
    assert len(others) == 4
    assert embedder(server, encoding="base64", batch_size=1).fingerprint == fingerprint


def test_key_is_never_logged_or_shown(server: EmbeddingsServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    asking = embedder(server)
    server.script.append(500)
    asking.embed_texts(["a"])
    assert "retrying_embeddings_endpoint" in caplog.text
    assert KEY not in caplog.text
    assert KEY not in repr(Endpoint(server.url, "tiny", KEY))


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        (Endpoint("ftp://host/v1", "m"), "is not a URL such as"),
        (Endpoint("nonsense", "m"), "is not a URL such as"),
        (Endpoint("http://host:x/v1", "m"), "is not a URL"),
        (Endpoint("http://me:secret@host/v1", "m"), "contains a password; pass it as --embedder-api-key"),
        (Endpoint("http://host/v1", ""), "--embedder-model is missing"),
        (Endpoint("http://host/v1", "m", "new\nline"), "--embedder-api-key contains characters"),
    ],
)
def test_invalid_endpoint_is_configuration_error(endpoint: Endpoint, expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected) as caught:
        HttpEmbedder(endpoint, HttpOptions(dim=4))
    assert "secret" not in str(caught.value)


def test_url_may_contain_path_and_hidden_query() -> None:
    for url in ("http://host/v1", "http://host/v1/", "http://host/v1/embeddings"):
        assert str(Endpoint(url, "m").parsed) == "http://host/v1/embeddings"
    asked = Endpoint("http://host/v1?api-version=2&sig=hidden", "m")
    assert str(asked.parsed) == "http://host/v1/embeddings?api-version=2&sig=hidden"
    assert asked.shown == "http://host/v1/embeddings"


def test_service_runs_with_endpoint_only(server: EmbeddingsServer, tmp_path: Path) -> None:
    chosen = RetrievalSettings(
        endpoint=EndpointSettings(url=server.url, model="tiny"),
        qdrant=QdrantSettings(path=tmp_path / "qdrant"),
        server=ServerOptions(shutdown_grace_s=0),
    )
    with serving_settings(chosen) as grpc_server, sync_channel(ChannelOptions(grpc_server.address)) as channel:
        stub = RetrievalServiceStub(channel)  # type: ignore[no-untyped-call]
        for name in ("shop", "mail"):
            examples = pb.ExamplePrompts(prompts=[prompt_to_proto(Prompt.of(f"open the {name}"))])
            card = adapter_pb2.Adapter(adapter_id=name, base_model="tiny", checkpoint_uri=f"adapters/{name}")
            stub.CreateAdapter(pb.CreateAdapterRequest(adapter=card, examples=examples))
        asked = prompt_to_proto(Prompt.of("<image>open the mail", [png_part(30, 30)]))
        answer = stub.RetrieveAdapters(pb.RetrieveAdaptersRequest(prompts=[asked, asked]))
        for selection in answer.selections:
            assert selection.matches[0].adapter.adapter_id == "mail"
            assert selection.matches[0].similarity == pytest.approx(1, abs=1e-6)
        assert server.inputs.count("open the mail") == 1  # the example's vector was still known
        only_image = prompt_to_proto(Prompt.of("", [png_part(30, 30)]))
        with pytest.raises(grpc.RpcError) as caught:
            stub.RetrieveAdapters(pb.RetrieveAdaptersRequest(prompts=[asked, only_image]))
        error = from_rpc_error(caught.value)
        assert isinstance(error, InvalidArgumentError)
        assert error.field == "prompts[1].messages"
        server.script += [(503, {"Retry-After": "60"})] * 5
        with pytest.raises(grpc.RpcError) as caught:
            stub.EmbedPrompts(pb.EmbedPromptsRequest(prompts=[prompt_to_proto(Prompt.of("new"))]), timeout=20)
        assert isinstance(from_rpc_error(caught.value), UnavailableError)
