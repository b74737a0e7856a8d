"""What every HTTP request passes: token, TLS, limits, request id, metrics, health."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import openai
import pytest
from prometheus_client import REGISTRY

from infra.contract.errors import ConfigurationError
from infra.contract.prompt import Prompt
from infra.runtime.logs import request_id
from infra.runtime.settings import ServerOptions
from orchestrator.gateway.http_server import serving
from orchestrator.gateway.metrics import requests_total
from tests.support.servers.gateway import gateway_server
from tests.support.servers.tiers import fake_tiers

ASK: dict[str, Any] = {"model": "base", "messages": [{"role": "user", "content": "hello"}]}


def options(**changes: Any) -> ServerOptions:
    return ServerOptions(**{"shutdown_grace_s": 0, **changes})


async def test_token_is_required_but_for_health() -> None:
    async with (
        fake_tiers() as tiers,
        gateway_server(tiers, options(auth_token="secret")) as address,
        httpx.AsyncClient(base_url=f"http://{address}") as client,
    ):
        assert (await client.get("/health")).json() == {"status": "ok"}
        for value in (None, "secret", "Bearer wrong", "Basic secret"):
            headers = {} if value is None else {"authorization": value}
            response = await client.get("/v1/models", headers=headers)
            assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
            assert response.json()["error"]["code"] == "invalid_api_key"
        assert (await client.get("/openapi.json")).status_code == 401
        with_token = openai.AsyncOpenAI(base_url=f"http://{address}/v1", api_key="secret")
        assert (await with_token.chat.completions.create(**ASK)).choices
        without = openai.AsyncOpenAI(base_url=f"http://{address}/v1", api_key="other")
        with pytest.raises(openai.AuthenticationError):
            await without.models.list()


@pytest.mark.parametrize("chunked", [False, True])
async def test_body_beyond_the_limit_is_refused_before_it_is_parsed(chunked: bool) -> None:
    async def pieces() -> Any:
        for _ in range(40):
            yield b"[" * 1000

    async with (
        fake_tiers() as tiers,
        gateway_server(tiers, max_body_bytes=8192) as address,
        httpx.AsyncClient(base_url=f"http://{address}") as client,
    ):
        body = pieces() if chunked else b"[" * 40_000
        response = await client.post("/v1/chat/completions", content=body)
        assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")
        assert "8192 bytes" in response.json()["error"]["message"]
        assert (await client.post("/v1/chat/completions", json=ASK)).status_code == 200


async def test_too_many_messages_are_refused() -> None:
    async with (
        fake_tiers() as tiers,
        gateway_server(tiers) as address,
        httpx.AsyncClient(base_url=f"http://{address}") as client,
    ):
        response = await client.post("/v1/chat/completions", json={**ASK, "messages": ASK["messages"] * 1025})
        assert (response.status_code, response.json()["error"]["param"]) == (400, "messages")


async def test_request_beyond_the_limit_is_told_to_retry() -> None:
    began, go_on = asyncio.Event(), asyncio.Event()

    async def wait(_prompt: Prompt, _peer: str) -> None:
        began.set()
        await go_on.wait()

    async with (
        fake_tiers() as tiers,
        gateway_server(tiers, max_requests=1) as address,
        httpx.AsyncClient(base_url=f"http://{address}") as client,
    ):
        tiers.generation.before = wait
        first = asyncio.create_task(client.post("/v1/chat/completions", json=ASK))
        await began.wait()
        second = await client.get("/v1/models")
        assert (second.status_code, second.headers["retry-after"]) == (429, "1")
        assert second.json()["error"]["type"] == "rate_limit_error"
        go_on.set()
        assert (await first).status_code == 200


async def test_request_id_is_echoed_and_reaches_the_services() -> None:
    seen: list[str] = []
    async with (
        fake_tiers() as tiers,
        gateway_server(tiers) as address,
        httpx.AsyncClient(base_url=f"http://{address}") as client,
    ):

        async def record(_prompt: Prompt, _peer: str) -> None:
            seen.append(request_id())

        tiers.generation.before = record
        given = await client.post("/v1/chat/completions", json=ASK, headers={"x-request-id": "mine-7"})
        assert (given.headers["x-request-id"], seen) == ("mine-7", ["mine-7"])
        replaced = await client.get("/v1/models", headers={"x-request-id": "not valid!"})
        assert replaced.headers["x-request-id"] not in ("", "not valid!")


async def test_requests_are_counted_by_route_and_status() -> None:
    def count(status: str) -> float:
        labels = {"route": "/v1/adapters/{adapter_id}", "method": "GET", "status": status}
        return REGISTRY.get_sample_value("loraretriever_http_requests_total", labels) or 0.0

    async with (
        fake_tiers() as tiers,
        gateway_server(tiers) as address,
        httpx.AsyncClient(base_url=f"http://{address}") as client,
    ):
        found, missing = count("200"), count("404")
        await client.get("/v1/adapters/gmail")
        await client.get("/v1/adapters/nosuch")
        await client.request("MADEUP", "/v1/adapters/gmail")
    assert (count("200"), count("404")) == (found + 1, missing + 1)
    labels = {sample.labels["method"] for sample in requests_total.collect()[0].samples}
    assert "MADEUP" not in labels
    assert "other" in labels


async def test_unexpected_exception_shows_no_internals() -> None:
    async with (
        fake_tiers() as tiers,
        gateway_server(tiers) as address,
        httpx.AsyncClient(base_url=f"http://{address}") as client,
    ):

        async def break_down(_prompt: Prompt, _peer: str) -> None:
            raise ZeroDivisionError("secret detail")

        tiers.generation.before = break_down
        response = await client.post("/v1/chat/completions", json=ASK)
        assert response.status_code == 500
        assert "secret detail" not in response.text
        assert response.json()["error"]["type"] == "server_error"


async def test_running_request_outlives_a_stop_and_new_ones_are_refused() -> None:
    began, go_on = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        began.set()
        await go_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async with httpx.AsyncClient() as client:
        async with serving(app, "127.0.0.1:0", options(shutdown_grace_s=60)) as server:
            first = asyncio.create_task(client.get(f"http://{server.address}/"))
            await began.wait()
            server.request_stop()
            while True:
                try:
                    _, writer = await asyncio.open_connection(*server.address.split(":"))
                except OSError:
                    break
                writer.close()
                await asyncio.sleep(0.01)
            go_on.set()
        assert (await first).status_code == 200


async def test_taken_port_names_the_setting() -> None:
    async with fake_tiers() as tiers, gateway_server(tiers) as address:
        with pytest.raises(ConfigurationError, match="--gateway-address"):
            async with serving(_no_app, address, options()):
                pass


async def _no_app(_scope: Any, _receive: Any, _send: Any) -> None:
    raise AssertionError
