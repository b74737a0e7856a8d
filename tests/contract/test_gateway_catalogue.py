"""The gateway's embeddings, adapters and matches, over a real retrieval service and catalogue."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from infra.contract.errors import CheckpointError, UnreachableError
from tests.support.servers.gateway import RunningGateway, running_gateway
from tests.support.servers.retrieval_server import DIM, Service, retrieval_service
from tests.support.servers.tiers import BASE_MODEL

GMAIL: dict[str, Any] = {
    "id": "gmail",
    "checkpoint": "adapters/gmail",
    "kind": "app",
    "tags": ["mail"],
    "examples": ["read mail", {"messages": [{"role": "user", "content": "send mail"}]}],
}
CLOCK: dict[str, Any] = {"id": "clock", "checkpoint": "adapters/clock", "examples": ["set an alarm"]}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with retrieval_service(tmp_path_factory.mktemp("catalogue")) as service:
        yield service


class Gateway:
    """Plain HTTP and OpenAI's client to a gateway, and the fake generation service behind it."""

    def __init__(self, running: RunningGateway, http: httpx.AsyncClient) -> None:
        self.tiers = running.tiers
        self.http = http
        self.openai = openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="unused", max_retries=0)


@pytest.fixture(scope="module")
def running(service: Service) -> Iterator[RunningGateway]:
    with running_gateway(service.address) as gateway:
        yield gateway


@pytest.fixture
async def served(running: RunningGateway) -> AsyncIterator[Gateway]:
    running.reset()
    async with httpx.AsyncClient(base_url=f"{running.url}/v1") as http:
        for body in (GMAIL, CLOCK):
            assert (await http.post("/adapters", json=body | {"replace": True})).status_code == 201
        yield Gateway(running, http)


async def test_adapters_are_added_shown_listed_and_deleted(served: Gateway) -> None:
    shown = (await served.http.get("/adapters/gmail")).json()
    assert (shown["base_model"], shown["kind"], shown["tags"]) == (BASE_MODEL, "app", ["mail"])
    assert (shown["checkpoint"], shown["example_count"]) == ("adapters/gmail", 2)
    assert [item["id"] for item in (await served.http.get("/adapters")).json()["data"]] == ["clock", "gmail"]
    for query in ("kind=app", "tag=mail"):
        assert [item["id"] for item in (await served.http.get(f"/adapters?{query}")).json()["data"]] == ["gmail"]
    refused = await served.http.get("/adapters?kidn=app")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "kidn")
    assert (await served.http.delete("/adapters/gmail")).json() == {"id": "gmail", "object": "adapter", "deleted": True}
    gone = await served.http.get("/adapters/gmail")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "not_found")


async def test_added_adapter_is_a_model_at_once(served: Gateway) -> None:
    assert "clock" in [model.id async for model in served.openai.models.list()]
    messages: list[Any] = [{"role": "user", "content": "set an alarm"}]
    answer = await served.openai.chat.completions.create(model="clock", messages=messages)
    assert answer.choices[0].message.content == "mixture(clock*1.00) saw 0: set an alarm"


async def test_adapter_of_a_taken_id_is_refused_once(served: Gateway) -> None:
    taken = await served.http.post("/adapters", json=GMAIL)
    assert (taken.status_code, taken.headers["x-should-retry"]) == (409, "false")


async def test_adapter_that_cannot_be_served_is_not_stored(served: Gateway) -> None:
    served.tiers.generation.check_failure = CheckpointError("no such folder: adapters/broken")
    refused = await served.http.post("/adapters", json=GMAIL | {"id": "broken"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "checkpoint_invalid")
    assert (await served.http.get("/adapters/broken")).status_code == 404
    served.tiers.generation.check_failure = UnreachableError("nothing listens")
    assert (await served.http.post("/adapters", json=GMAIL | {"id": "broken"})).status_code == 503
    assert (await served.http.get("/adapters/broken")).status_code == 404


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"id": "a b"}, "id"),
        ({"examples": []}, "examples"),
        ({"examples": ["good", " "]}, "examples[1].messages[0].content"),
        ({"examples": [{"messages": [{"role": "assistant", "content": "x"}]}]}, "examples[0].messages[0].role"),
        ({"rnak": 8}, "rnak"),
        ({"checkpoint": ""}, "checkpoint"),
        ({"checkpoint": "a\0b"}, "checkpoint"),
    ],
)
async def test_invalid_adapter_names_the_field(served: Gateway, change: dict[str, Any], param: str) -> None:
    refused = await served.http.post("/adapters", json=GMAIL | {"id": "new"} | change)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


async def test_match_ranks_adapters_without_an_answer(served: Gateway) -> None:
    matched = (await served.http.post("/adapters/match", json={"prompt": "send mail", "top_k": 2})).json()
    assert [match["id"] for match in matched["data"]] == ["gmail", "clock"]
    assert matched["data"][0]["similarity"] > matched["data"][1]["similarity"]
    assert sum(match["weight"] for match in matched["data"]) == pytest.approx(1)
    assert served.tiers.generation.calls == 0
    messages = [{"role": "user", "content": "set an alarm"}]
    again = (await served.http.post("/adapters/match", json={"messages": messages, "include": ["clock"]})).json()
    assert [match["id"] for match in again["data"]] == ["clock"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"prompt": "x", "messages": [{"role": "user", "content": "x"}]}, "messages"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "x", "top_k": 0}, "top_k"),
        ({"prompt": "x", "include": ["nosuch"]}, "include[0]"),
        ({"prompt": "x", "method": "mixture"}, "method"),
    ],
)
async def test_invalid_match_names_the_field(served: Gateway, body: dict[str, Any], param: str) -> None:
    refused = await served.http.post("/adapters/match", json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


async def test_embeddings_are_those_of_the_catalogue(served: Gateway, service: Service) -> None:
    # The client asks for base64 unless told otherwise, and decodes it.
    response = await served.openai.embeddings.create(model="embedder", input=["send mail", "set an alarm"])
    vectors = np.array([item.embedding for item in response.data])
    assert vectors.shape == (2, DIM)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1])
    plain = await served.openai.embeddings.create(model="embedder", input="send mail", encoding_format="float")
    assert plain.data[0].embedding == pytest.approx(vectors[0].tolist())
    raw = (
        await served.http.post(
            "/embeddings", json={"model": "embedder", "input": "send mail", "encoding_format": "base64"}
        )
    ).json()
    assert np.frombuffer(base64.b64decode(raw["data"][0]["embedding"]), "<f4") == pytest.approx(vectors[0])


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": []}, "input"),
        ({"input": ["x", ""]}, "input[1]"),
        ({"input": [[1, 2]]}, "input[0]"),
        ({"input": ["x"] * 65}, "input"),
        ({"dimensions": 4}, "dimensions"),
    ],
)
async def test_invalid_embedding_request_names_the_field(served: Gateway, change: dict[str, Any], param: str) -> None:
    refused = await served.http.post("/embeddings", json={"model": "embedder", "input": "x"} | change)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


async def test_embeddings_of_another_model_are_not_found(served: Gateway, tmp_path: Path) -> None:
    with pytest.raises(openai.NotFoundError, match="the only embedder is 'embedder'"):
        await served.openai.embeddings.create(model="text-embedding-3-small", input="x")
