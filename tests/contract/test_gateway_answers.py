"""Chat and text completions of the HTTP gateway, called with OpenAI's own client, over small services."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from infra.contract.errors import (
    CapacityError,
    DeadlineError,
    InvalidArgumentError,
    LoraRetrieverError,
    OverloadedError,
    UnauthenticatedError,
    UnavailableError,
)
from infra.contract.prompt import Prompt
from infra.contract.retrieval import RetrievalStrategy, Weighting
from tests.support.harness.images import picture, png
from tests.support.servers.gateway import RunningGateway, gateway_server, running_gateway
from tests.support.servers.tiers import FakeTiers, fake_tiers

QUESTION: list[Any] = [{"role": "user", "content": "open the gmail inbox"}]
IMAGE_URL = "data:image/png;base64," + base64.b64encode(png(picture(8, 8))).decode()


@dataclass(frozen=True)
class Served:
    """A gateway over fake services, and a client of it."""

    tiers: FakeTiers
    client: openai.AsyncOpenAI
    url: str

    async def ask(self, **fields: Any) -> Any:
        return await self.client.chat.completions.create(**{"model": "auto", "messages": QUESTION, **fields})


def client_of(url: str, **options: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(**{"base_url": f"{url}/v1", "api_key": "unused", "max_retries": 0, **options})


@pytest.fixture(scope="module")
def running() -> Iterator[RunningGateway]:
    with running_gateway() as gateway:
        yield gateway


@pytest.fixture
async def served(running: RunningGateway) -> AsyncIterator[Served]:
    running.reset()
    async with client_of(running.url) as client:
        yield Served(running.tiers, client, running.url)


@pytest.fixture
async def served_here() -> AsyncIterator[Served]:
    """Serve on the test's own event loop, for services that wait for the test."""
    async with fake_tiers() as tiers, gateway_server(tiers) as address, client_of(f"http://{address}") as client:
        yield Served(tiers, client, f"http://{address}")


async def refused(served: Served, **fields: Any) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as caught:
        await served.ask(**fields)
    return caught.value


async def test_auto_retrieves_and_reports_adapters_similarities_and_weights(served: Served) -> None:
    completion = await served.ask(extra_body={"loraretriever": {"top_k": 2}})
    assert completion.choices[0].message.content.startswith("mixture(gmail*0.50+")
    assert (completion.choices[0].finish_reason, completion.model) == ("stop", "auto")
    report = completion.loraretriever
    assert [adapter["id"] for adapter in report["adapters"]] == [match["id"] for match in report["matches"]]
    assert report["matches"][0]["similarity"] == pytest.approx(0.9)
    assert [adapter["weight"] for adapter in report["adapters"]] == [0.5, 0.5]
    assert (report["method"], report["catalogue_revision"], report["stale"]) == ("mixture", "catalogue-1", False)
    usage = completion.usage
    assert (usage.prompt_tokens, usage.total_tokens) == (4, 4 + usage.completion_tokens)


def test_synchronous_client_answers_and_streams() -> None:
    async def with_gateway() -> None:
        async with fake_tiers() as tiers, gateway_server(tiers) as address:
            await asyncio.to_thread(ask, f"http://{address}/v1")

    def ask(url: str) -> None:
        with openai.OpenAI(base_url=url, api_key="unused", max_retries=0) as client:
            answer = client.chat.completions.create(model="base", messages=QUESTION)
            assert answer.choices[0].message.content == "base() saw 0: open the gmail inbox"
            stream = client.chat.completions.create(model="base", messages=QUESTION, stream=True)
            pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
            assert "".join(pieces) == "base()saw0:openthegmailinbox"
            with pytest.raises(openai.NotFoundError):
                client.chat.completions.create(model="gpt-4o", messages=QUESTION)

    asyncio.run(with_gateway())


@pytest.mark.parametrize(
    ("model", "extension", "answer"),
    [
        ("auto:mixture", {"top_k": 1}, "mixture(gmail*1.00)"),
        ("auto:selection", {}, "mixture(gmail*1.00)"),
        ("auto:fusion-svd", {"top_k": 1}, "fusion(gmail*1.00)"),
        ("auto", {"method": "fusion", "top_k": 1}, "fusion(gmail*1.00)"),
        ("auto", {"include": ["ebay"]}, "mixture(ebay*1.00)"),
        ("auto", {"kind": "category"}, "mixture(shopping*1.00)"),
        ("auto", {"weights": {"clock": 0.25, "ebay": 0.75}}, "mixture(clock*0.25+ebay*0.75)"),
        ("auto:fusion-linear", {"weights": {"clock": 1}}, "fusion(clock*1.00)"),
        ("base", None, "base()"),
        ("clock", None, "mixture(clock*1.00)"),
    ],
)
async def test_model_and_extension_choose_adapters(
    served: Served, model: str, extension: dict[str, Any] | None, answer: str
) -> None:
    body = {} if extension is None else {"loraretriever": extension}
    completion = await served.ask(model=model, extra_body=body)
    assert completion.choices[0].message.content.startswith(answer + " saw 0")


async def test_retrieval_fields_reach_the_service(served: Served) -> None:
    fields = {"weighting": "softmax", "weighting_temperature": 0.1, "min_similarity": 0.5, "exclude": ["clock"]}
    fields |= {"min_log_odds": -2.5, "retrieval_strategy": "two_covariance"}
    await served.ask(extra_body={"loraretriever": fields})
    asked = served.tiers.retrieval.asked[-1]
    assert (asked.weighting, asked.temperature, asked.min_similarity) == (Weighting.SOFTMAX, 0.1, 0.5)
    assert (asked.exclude, asked.min_log_odds, asked.strategy) == (("clock",), -2.5, RetrievalStrategy.TWO_COVARIANCE)


async def test_nothing_similar_is_answered_by_the_base_model_with_the_reason(served: Served) -> None:
    messages = [{"role": "user", "content": "hello"}]
    completion = await served.ask(messages=messages, extra_body={"loraretriever": {"min_similarity": 0.99}})
    assert completion.choices[0].message.content == "base() saw 0: hello"
    report = completion.loraretriever
    assert (report["adapters"], report["reason"]) == ([], "below_minimum_similarity")


async def test_messages_become_turns_with_their_images(served: Served) -> None:
    seen: list[Prompt] = []

    async def record(prompt: Prompt, _peer: str) -> None:
        seen.append(prompt)

    served.tiers.generation.before = record
    first = [{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": IMAGE_URL}}]
    reply = (await served.ask()).choices[0].message
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": first},
        reply.model_dump(),
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": IMAGE_URL, "detail": "high"}}]},
    ]
    await served.ask(messages=messages)
    prompt = seen[-1]
    assert [message.role.value for message in prompt.messages] == ["system", "user", "assistant", "user"]
    assert [image.data for image in prompt.images] == [png(picture(8, 8))] * 2
    assert prompt.images[0].mime_type == "image/png"


async def test_stream_has_role_text_reason_and_adapters(served: Served) -> None:
    chunks = [chunk async for chunk in await served.ask(stream=True)]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].loraretriever["matches"][0]["id"] == "gmail"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text.startswith("mixture(gmail*0.33+")
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert len(chunks[-1].loraretriever["adapters"]) == 3
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


async def test_stream_with_usage_ends_with_it(served: Served) -> None:
    chunks = [chunk async for chunk in await served.ask(stream=True, stream_options={"include_usage": True})]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.prompt_tokens == 4
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_stream_helper_of_the_client_accumulates_the_answer(served: Served) -> None:
    async with served.client.chat.completions.stream(model="clock", messages=QUESTION) as stream:
        completion = await stream.get_final_completion()
    assert completion.choices[0].message.content == "mixture(clock*1.00)saw0:openthegmailinbox"
    assert completion.choices[0].finish_reason == "stop"


async def test_structured_answers_are_refused_by_name(served: Served) -> None:
    class Shape(BaseModel):
        text: str

    with pytest.raises(openai.BadRequestError) as caught:
        await served.client.chat.completions.parse(model="auto", messages=QUESTION, response_format=Shape)
    assert caught.value.param == "response_format"


async def test_text_completions_answer_and_stream(served: Served) -> None:
    completion = await served.client.completions.create(model="clock", prompt="set an alarm")
    assert completion.choices[0].text == "mixture(clock*1.00) saw 0: set an alarm"
    assert completion.usage is not None
    stream = await served.client.completions.create(
        model="clock", prompt=["set an alarm"], stream=True, stream_options={"include_usage": True}
    )
    parts = [part async for part in stream]
    assert "".join(part.choices[0].text for part in parts if part.choices) == "mixture(clock*1.00)saw0:setanalarm"
    assert (parts[-1].choices, parts[-2].choices[0].finish_reason) == ([], "stop")
    assert parts[-1].usage is not None


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"n": 2}, "n", "does not offer it; leave it out, or send 1"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "does not offer"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "does not offer"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [*QUESTION, {"role": "assistant", "content": "hi"}]}, "messages[1].role", "must be the user's"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "'tool' is not offered"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages[0].content", "the message is empty"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "needs text or an image"),
        ({"messages": [{"role": "user", "content": "x", "name": "Ann"}]}, "messages[0].name", "does not offer"),
        ({"messages": [None]}, "messages[0]", "JSON object"),
        ({"max_tokens": 2**31}, "max_tokens", "below 2^31"),
        ({"seed": 2**64}, "seed", "2^64"),
        ({"extra_body": {"top_k": 10**30}}, "top_k", "below 2^31"),
        ({"extra_body": {"loraretriever": {"top_k": 2**31}}}, "loraretriever.top_k", "below 2^31"),
        ({"temperature": -1}, "temperature", "not negative"),
        ({"top_p": 0}, "top_p", "(0, 1]"),
        ({"max_tokens": 0}, "max_tokens", "at least 1"),
        ({"max_completion_tokens": -3}, "max_completion_tokens", "at least 1"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "contradicts"),
        ({"stop": [""]}, "stop", "empty"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream: true"),
        ({"extra_body": {"best": 1}}, "best", "no such field"),
        ({"extra_body": {"top_k": -1}}, "top_k", "not be negative"),
        ({"extra_body": {"loraretriever": {"topk": 1}}}, "loraretriever.topk", "no such field"),
        ({"extra_body": {"loraretriever": {"top_k": 0}}}, "loraretriever.top_k", "at least 1"),
        ({"extra_body": {"loraretriever": {"method": "blend"}}}, "loraretriever.method", "mixture"),
        ({"extra_body": {"loraretriever": {"weights": {}}}}, "loraretriever.weights", "is empty"),
        ({"extra_body": {"loraretriever": {"weights": {"a": -1}}}}, "loraretriever.weights.a.weight", "not negative"),
        ({"extra_body": {"loraretriever": {"weights": {"a": 1}, "top_k": 2}}}, "loraretriever.top_k", "no effect"),
        ({"model": "base", "extra_body": {"loraretriever": {"top_k": 2}}}, "loraretriever.top_k", "no effect"),
        (
            {"model": "auto:selection", "extra_body": {"loraretriever": {"method": "mixture"}}},
            "loraretriever.method",
            "contr",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_invalid_field_is_named(served: Served, fields: dict[str, Any], param: str, words: str) -> None:
    error = await refused(served, **fields)
    assert isinstance(error, openai.BadRequestError)
    assert (error.param, error.type) == (param, "invalid_request_error")
    assert words in error.message
    assert served.tiers.generation.calls == 0


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://example.com/cat.png", "does not fetch images from that host"),
        ("HTTP://127.0.0.1:1/cat.png", "does not fetch images from that host"),
        ("file:///etc/passwd", "no data URL, but one of scheme 'file'"),
        ("cat.png", "no data URL"),
        ("data:image/png,abc", "not a base64 data URL"),
        ("data:image/png;base64", "not a base64 data URL"),
        ("data:image/png;base64,AAA", "not base64"),
        ("data:image/png;base64,", "no bytes"),
    ],
)
async def test_image_that_is_no_data_url_is_refused(served: Served, url: str, words: str) -> None:
    content = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": url}}]
    error = await refused(served, messages=[{"role": "user", "content": content}])
    assert error.param == "messages[0].content[1].image_url.url"
    assert words in error.message


@pytest.mark.parametrize("model", ["gpt-4o", "auto:blend", "auto:", "openai/gpt-4o", ""])
async def test_unknown_model_is_not_found(served: Served, model: str) -> None:
    error = await refused(served, model=model)
    assert isinstance(error, openai.NotFoundError)
    assert (error.param, error.code) == ("model", "model_not_found")
    assert served.tiers.generation.calls == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (OverloadedError("8 requests wait"), (429, "queue_full", "1")),
        (UnavailableError("loading"), (503, "unavailable", "2")),
        (DeadlineError("too late"), (504, "deadline_exceeded", None)),
        (CapacityError("rank 64 does not fit"), (400, "capacity_exceeded", None)),
        (UnauthenticatedError("no token"), (500, "internal", None)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_failure_before_the_text_has_a_status(
    served: Served, failure: LoraRetrieverError, expected: tuple[int, str, str | None], stream: bool
) -> None:
    served.tiers.generation.failures["gmail"] = failure
    error = await refused(served, stream=stream)
    assert (error.status_code, error.code, error.response.headers.get("retry-after")) == expected
    assert error.response.headers["x-request-id"]


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ("prompt", "messages"),
        ("prompt.messages", "messages"),
        ("prompt.messages[2].parts", "messages[2].content"),
        ("prompt.messages[0].parts[1].text", "messages[0].content[1].text"),
        ("prompt.messages[0].parts[1].image", "messages[0].content[1].image_url"),
        ("prompt.messages[0].parts[1].image.data", "messages[0].content[1].image_url.url"),
        ("prompt.messages[0].parts[1].image.mime_type", "messages[0].content[1].image_url.url"),
        ("decoding.max_new_tokens", "max_tokens"),
        ("decoding.token_top_k", "top_k"),
        ("decoding.stop", "stop"),
        ("retrieval.temperature", "loraretriever.weighting_temperature"),
        ("composition.mixture.adapters[0].weight", "loraretriever.weights"),
    ],
)
async def test_field_of_a_service_is_that_of_the_request(served: Served, field: str, param: str) -> None:
    served.tiers.generation.failures["gmail"] = InvalidArgumentError(field, "is wrong")
    error = await refused(served)
    assert error.param == param
    assert "is wrong" in error.message


async def test_failure_within_a_stream_is_its_last_event(served: Served) -> None:
    served.tiers.generation.fails_after_text = UnavailableError("the service stops")
    stream = await served.ask(stream=True)
    texts = []

    async def read() -> None:
        async for chunk in stream:
            texts.append(chunk.choices[0].delta.content)

    with pytest.raises(openai.APIError, match="the service stops"):
        await read()
    assert texts[1].startswith("mixture(gmail")


async def test_answer_beyond_the_time_limit_is_a_timeout() -> None:
    async with fake_tiers() as tiers, gateway_server(tiers, answer_timeout_s=0.2) as address:
        tiers.generation.before = _forever
        async with client_of(f"http://{address}") as client:
            with pytest.raises(openai.InternalServerError) as caught:
                await client.chat.completions.create(model="base", messages=QUESTION)
    assert (caught.value.status_code, caught.value.code) == (504, "deadline_exceeded")


@pytest.mark.parametrize("stream", [False, True])
async def test_client_that_leaves_cancels_the_generation(served_here: Served, stream: bool) -> None:
    began, cancelled = asyncio.Event(), asyncio.Event()

    async def wait(_prompt: Prompt, _peer: str) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    served_here.tiers.generation.before = wait
    asking = asyncio.create_task(served_here.ask(stream=stream))
    await began.wait()
    asking.cancel()
    await asyncio.wait_for(cancelled.wait(), 20)


async def test_client_that_leaves_a_stream_cancels_the_generation(served_here: Served) -> None:
    served_here.tiers.generation.waits_after_text = asyncio.Event()
    stream = await served_here.ask(stream=True)
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    await stream.close()
    await asyncio.wait_for(served_here.tiers.generation.stream_ended.wait(), 20)


async def test_body_that_is_not_json_is_refused(served: Served) -> None:
    async with httpx.AsyncClient() as client:
        for body in (b"{", b"", b"[" * 100_000, b'"text"', b"[]", b"null", b"\xff", b'{"n":' + b"9" * 5000 + b"}"):
            response = await client.post(
                f"{served.url}/v1/chat/completions", content=body, headers={"content-type": "application/json"}
            )
            assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_json"), body[:10]
        response = await client.post(f"{served.url}/v1/chat/completions", content=b"{}", headers={"x-a": "b"})
        assert (response.status_code, "content-type: application/json" in response.text) == (400, True)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content[0].text"),
        ({"stop": ["x", "\udc00"]}, "stop[1]"),
        ({"model": "\ud800"}, "model"),
        ({"loraretriever": {"include": ["\ud800"]}}, "loraretriever.include[0]"),
    ],
)
async def test_text_that_is_not_unicode_is_refused(served: Served, fields: dict[str, Any], param: str) -> None:
    body = json.dumps({"model": "auto", "messages": QUESTION, **fields})
    async with httpx.AsyncClient() as client:
        headers = {"content-type": "application/json"}
        response = await client.post(f"{served.url}/v1/chat/completions", content=body, headers=headers)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


async def test_unknown_path_and_method_have_the_shape_of_errors(served: Served) -> None:
    async with httpx.AsyncClient(base_url=served.url) as client:
        for response in (await client.get("/v1/nothing"), await client.get("/v1/chat/completions")):
            assert response.status_code in (404, 405)
            assert response.json()["error"]["message"]


async def test_models_lists_methods_and_adapters(served: Served) -> None:
    models = [model.id async for model in served.client.models.list()]
    assert {"auto", "auto:mixture", "auto:selection", "auto:fusion-svd", "base", "gmail", "clock"} <= set(models)
    for name in models:
        assert (await served.client.models.retrieve(name)).id == name
    with pytest.raises(openai.NotFoundError):
        await served.client.models.retrieve("gpt-4o")


async def test_raw_stream_ends_with_done(served: Served) -> None:
    async with httpx.AsyncClient(base_url=served.url) as client:
        body = {"model": "base", "messages": QUESTION, "stream": True}
        response = await client.post("/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert [list(chunk["choices"][0]["delta"]) for chunk in chunks[:2]] == [["role", "content"], ["content"]]
    assert chunks[-1]["choices"][0]["delta"] == {}


async def _forever(_prompt: Prompt, _peer: str) -> None:
    await asyncio.Event().wait()
