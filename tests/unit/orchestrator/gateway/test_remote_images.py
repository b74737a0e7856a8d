"""Images by URL: fetched from allowed hosts only."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from infra.contract.errors import InvalidArgumentError
from infra.runtime.images import ImageLimits
from orchestrator.gateway.content import ChatMessage, ContentPart, ImageUrl, prompt_of
from orchestrator.gateway.remote_images import ImageFetcher
from tests.support.harness.images import picture, png

IMAGE = png(picture(8, 8))
requested: list[str] = []


class Handler(BaseHTTPRequestHandler):
    """An image, a redirect to it, a missing one, and one that never ends."""

    def do_GET(self) -> None:
        requested.append(self.path)
        self.send_response({"/image.png": 200, "/large": 200, "/moved": 302}.get(self.path, 404))
        self.send_header("location", "/image.png")
        self.end_headers()
        self.wfile.write(IMAGE * 100 if self.path == "/large" else IMAGE)

    def log_message(self, format: str, *args: object) -> None:
        """Write no log."""


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def message(*urls: str) -> ChatMessage:
    parts = [ContentPart(type="image_url", image_url=ImageUrl(url=url)) for url in urls]
    return ChatMessage(role="user", content=[*parts, ContentPart(type="text", text="look")])


async def test_image_of_an_allowed_host_becomes_a_part(host: str) -> None:
    inline = f"data:image/png;base64,{base64.b64encode(IMAGE).decode()}"
    messages = [message(f"http://{host}/image.png", inline)]
    await ImageFetcher([host]).inline(messages)
    assert [image.data for image in prompt_of(messages).images] == [IMAGE, IMAGE]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://{}/moved", "answered 302"),
        ("http://{}/missing", "answered 404"),
        ("http://{}/large", "is over 10000 bytes"),
        ("http://127.0.0.1:1/image.png", "does not fetch images from that host"),
        ("http://127.0.0.1/image.png", "does not fetch images from that host"),
        ("http://user@{}/image.png", "does not fetch images from that host"),
        ("http://{}.example.com/image.png", "is not a URL"),
        ("https://{}/image.png", "cannot be fetched"),
    ],
)
async def test_what_is_not_fetched_names_the_field(host: str, url: str, words: str) -> None:
    fetcher = ImageFetcher([host], ImageLimits(max_bytes=10_000))
    with pytest.raises(InvalidArgumentError, match=words) as caught:
        await fetcher.inline([message("data:,x"), message("data:,x", url.format(host))])
    assert caught.value.field == "messages[1].content[1].image_url.url"


async def test_no_host_is_allowed_by_default(host: str) -> None:
    requested.clear()
    with pytest.raises(InvalidArgumentError, match="--gateway-image-hosts"):
        await ImageFetcher().inline([message(f"http://{host}/image.png")])
    assert requested == []


async def test_number_of_fetched_images_is_limited(host: str) -> None:
    messages = [message(*[f"http://{host}/image.png"] * 3)]
    with pytest.raises(InvalidArgumentError, match="at most 2 images") as caught:
        await ImageFetcher([host], ImageLimits(max_images=2)).inline(messages)
    assert caught.value.field == "messages[0].content[2].image_url.url"
