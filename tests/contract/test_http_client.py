"""Client and AsyncClient against a gateway over small services."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from loraretriever import (
    AlreadyExistsError,
    AsyncClient,
    Client,
    ConfigurationError,
    DeadlineError,
    ImagePart,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    OverloadedError,
    Prompt,
    UnauthenticatedError,
    UnavailableError,
    UnreachableError,
)

from infra.runtime.settings import ServerOptions
from tests.support.harness.images import picture, png
from tests.support.servers.gateway import RunningGateway, gateway_server, running_gateway
from tests.support.servers.retrieval_server import retrieval_service
from tests.support.servers.tiers import BASE_MODEL, fake_tiers


@pytest.fixture(scope="module")
def running() -> Iterator[RunningGateway]:
    with running_gateway() as gateway:
        yield gateway


@pytest.fixture
def gateway(running: RunningGateway) -> RunningGateway:
    running.reset()
    return running


def test_answer_has_text_adapters_matches_and_usage(gateway: RunningGateway) -> None:
    with Client(gateway.url) as client:
        reply = client.answer("open gmail", top_k=2, max_tokens=9, temperature=0.5, seed=1, stop=["x"])
    assert reply.text.startswith("mixture(gmail*0.50+")
    assert str(reply) == reply.text
    assert [share.weight for share in reply.adapters] == [0.5, 0.5]
    assert reply.matches[0].id == "gmail"
    assert reply.matches[0].similarity == pytest.approx(0.9)
    assert (len(reply.matches), reply.method, reply.usage.prompt_tokens) == (2, "mixture", 2)
    assert reply.timings.decode_s == pytest.approx(0.003)


@pytest.mark.parametrize("url", ["{}", "{}/", "{}/v1", "{}/v1/"])
def test_url_may_end_as_openai_clients_want_it(gateway: RunningGateway, url: str) -> None:
    with Client(url.format(gateway.url)) as client:
        assert client.answer("hello", model="base").adapters == ()


def test_every_kind_of_image_is_sent(gateway: RunningGateway, tmp_path: Path) -> None:
    image = picture(8, 8)
    file = tmp_path / "screen.png"
    file.write_bytes(png(image))
    with Client(gateway.url) as client:
        images = [file, str(file), png(image), image, ImagePart(png(image), "image/png")]
        assert " saw 5: " in client.answer("look", images, model="base").text
        prompt = Prompt.of("look", [ImagePart(png(image))])
        assert " saw 1: " in client.answer(prompt, model="base").text
        with pytest.raises(InvalidArgumentError, match=r"images\[1\]: .*nosuch.png cannot be read"):
            client.answer("look", [file, tmp_path / "nosuch.png"])
        with pytest.raises(InvalidArgumentError, match="images"):
            client.answer(prompt, [file])


def test_stream_yields_text_and_then_has_the_reply(gateway: RunningGateway) -> None:
    with Client(gateway.url) as client:
        stream = client.stream("open gmail", top_k=1)
        with pytest.raises(InternalError, match="has not ended"):
            _ = stream.reply
        pieces = list(stream)
        assert "".join(pieces) == stream.reply.text == "mixture(gmail*1.00)saw0:opengmail"
        assert stream.matches is not None
        assert stream.matches[0].id == "gmail"
        assert stream.reply.usage.completion_tokens == 5


def test_stream_that_is_closed_cancels_the_generation(gateway: RunningGateway) -> None:
    gateway.tiers.generation.stream_ended.clear()
    gateway.tiers.generation.waits_after_text = asyncio.Event()
    with Client(gateway.url) as client:
        stream = client.stream("open gmail")
        next(iter(stream))
        stream.close()
    deadline = time.monotonic() + 20
    while not gateway.tiers.generation.stream_ended.is_set() and time.monotonic() < deadline:
        time.sleep(0.01)
    gateway.tiers.generation.waits_after_text = None
    assert gateway.tiers.generation.stream_ended.is_set()


def test_match_returns_adapters_or_why_there_are_none(gateway: RunningGateway) -> None:
    with Client(gateway.url) as client:
        found = client.match("open gmail", top_k=2, exclude=["clock"])
        assert found[0].id == "gmail"
        assert sum(match.weight for match in found) == pytest.approx(1)
        nothing = client.match("hello", min_similarity=0.99)
        assert (len(nothing), nothing.reason) == (0, "below_minimum_similarity")


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (OverloadedError("8 wait"), OverloadedError),
        (UnavailableError("loading"), UnavailableError),
        (DeadlineError("late"), DeadlineError),
        (NotFoundError("no adapter"), NotFoundError),
        (InvalidArgumentError("decoding.top_p", "is odd"), InvalidArgumentError),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_errors_of_the_services_keep_their_class_and_message(gateway: RunningGateway, failure: Any, kind: type) -> None:
    gateway.tiers.generation.failures["gmail"] = failure
    with Client(gateway.url, max_retries=0) as client:
        for call in (client.answer, lambda text: list(client.stream(text))):
            with pytest.raises(kind) as caught:
                call("open gmail")
            assert failure.message.partition(": ")[2] in str(caught.value)


def test_error_within_a_stream_is_raised(gateway: RunningGateway) -> None:
    gateway.tiers.generation.fails_after_text = UnavailableError("the service stops")
    with Client(gateway.url) as client:
        stream = iter(client.stream("open gmail"))
        assert next(stream).startswith("mixture")
        with pytest.raises(UnavailableError, match="the service stops"):
            next(stream)


def test_field_of_an_error_is_that_of_the_request(gateway: RunningGateway) -> None:
    with Client(gateway.url) as client:
        with pytest.raises(InvalidArgumentError) as caught:
            client.answer("hello", top_k=0)
        assert (caught.value.field, caught.value.description) == (
            "loraretriever.top_k",
            "must be at least 1 and below 2^31, got 0",
        )
        assert any(note.startswith("request id ") for note in caught.value.__notes__)
        with pytest.raises(NotFoundError):
            client.answer("hello", model="gpt-4o")
        with pytest.raises(InvalidArgumentError, match="valid Unicode"):
            client.answer("half a pair: \ud800")


def test_busy_service_is_asked_again(gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    def recover(seconds: float) -> None:
        pauses.append(seconds)
        gateway.tiers.generation.failures.clear()

    monkeypatch.setattr("time.sleep", recover)
    gateway.tiers.generation.failures["gmail"] = OverloadedError("8 wait")
    with Client(gateway.url, max_retries=1) as client:
        assert client.answer("open gmail").text
    assert pauses == [1.0]  # what the server's retry-after says


async def test_asynchronous_client_does_the_same(gateway: RunningGateway, tmp_path: Path) -> None:
    async with AsyncClient(gateway.url, max_retries=0) as client:
        assert (
            await client.answer("open gmail", [picture(8, 8)], top_k=1)
        ).text == "mixture(gmail*1.00) saw 1: open gmail"
        stream = client.stream("open gmail", top_k=1)
        pieces = [piece async for piece in stream]
        assert "".join(pieces) == stream.reply.text
        assert (await client.match("open gmail", top_k=1))[0].id == "gmail"
        with pytest.raises(NotFoundError):
            await client.adapters.get("nosuch")
        gateway.tiers.generation.failures["gmail"] = OverloadedError("8 wait")
        with pytest.raises(OverloadedError):
            await client.answer("open gmail")


async def test_catalogue_is_managed(tmp_path: Path) -> None:
    with retrieval_service(tmp_path / "catalogue") as service:
        async with fake_tiers() as tiers:
            behind = replace(tiers, retrieval_target=service.address)
            async with gateway_server(behind) as address, AsyncClient(f"http://{address}") as client:
                added = await client.adapters.add("gmail", Path("a/gmail"), ["read mail"], kind="app", tags=["mail"])
                assert (added.base_model, added.checkpoint_uri, added.tags) == (BASE_MODEL, "a/gmail", ("mail",))
                assert added.update_time is not None
                with pytest.raises(AlreadyExistsError):
                    await client.adapters.add("gmail", "a/gmail", ["read mail"])
                assert await client.adapters.get("gmail") == added
                assert await client.adapters.list(kind="app") == (added,)
                assert await client.adapters.list(kind="other") == ()
                await asyncio.to_thread(_manage, f"http://{address}")
                assert await client.adapters.list() == (added,)


def _manage(url: str) -> None:
    with Client(url) as client:
        client.adapters.add("clock", "a/clock", [Prompt.of("set an alarm")])
        assert [adapter.adapter_id for adapter in client.adapters.list()] == ["clock", "gmail"]
        client.adapters.delete("clock")
        with pytest.raises(NotFoundError):
            client.adapters.get("clock")


async def test_token_is_sent() -> None:
    options = ServerOptions(auth_token="secret", shutdown_grace_s=0)
    async with fake_tiers() as tiers, gateway_server(tiers, options) as address:
        async with AsyncClient(f"http://{address}", token="secret") as client:
            assert (await client.answer("hello", model="base")).text
        async with AsyncClient(f"http://{address}", token="wrong") as client:
            with pytest.raises(UnauthenticatedError, match="Bearer TOKEN"):
                await client.answer("hello", model="base")


def test_unreachable_gateway_is_named() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with Client(url, max_retries=0) as client, pytest.raises(UnreachableError, match=url):
        client.answer("hello")


@pytest.mark.parametrize("options", [{"url": "127.0.0.1:50080"}, {"url": "https://x", "ca": "/no/such.pem"}])
def test_unusable_connection_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Client(**options)
