"""Images that a request names by URL, fetched from the hosts that the operator allows; by default from none."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence

import httpx

from infra.contract.errors import InvalidArgumentError, field_path
from infra.runtime.images import ImageLimits
from orchestrator.gateway.content import ChatMessage, ImageUrl

_SCHEMES = ("http", "https")
#: Time for one image, from the connection to its last byte.
_TIMEOUT_S = 10.0


class ImageFetcher:
    """Fetches images from `hosts`, each "name" or "name:port". Redirects, which could lead elsewhere, are refused."""

    def __init__(self, hosts: Sequence[str] = (), limits: ImageLimits | None = None) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)
        self._limits = limits or ImageLimits()

    async def inline(self, messages: Sequence[ChatMessage]) -> None:
        """Replace the remote URLs in messages by data URLs. Raises InvalidArgumentError with the path of the URL."""
        count = 0
        for turn, message in enumerate(messages):
            for index, part in enumerate(message.content or ()):
                if part.image_url is None or _scheme(part.image_url.url) not in _SCHEMES:
                    continue
                count += 1
                with field_path(f"messages[{turn}].content[{index}].image_url.url"):
                    if count > self._limits.max_images:
                        raise InvalidArgumentError("", f"at most {self._limits.max_images} images are fetched")
                    part.image_url = ImageUrl(url=await self._data_url(part.image_url.url))

    async def _data_url(self, url: str) -> str:
        try:
            parsed = httpx.URL(url)
        except (httpx.InvalidURL, UnicodeError) as error:
            raise InvalidArgumentError("", f"is not a URL ({error})") from error
        host = parsed.host.lower()
        if parsed.userinfo or not self._hosts & {host if parsed.port is None else f"{host}:{parsed.port}"}:
            raise InvalidArgumentError(
                "",
                "this server does not fetch images from that host; send the file as data:image/png;base64,... "
                "(its operator can allow hosts with --gateway-image-hosts)",
            )
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                return f"data:;base64,{base64.b64encode(await self._fetch(parsed)).decode()}"
        except (httpx.HTTPError, TimeoutError) as error:
            raise InvalidArgumentError(
                "", f"the image cannot be fetched ({type(error).__name__}); send it as a data URL"
            ) from error

    async def _fetch(self, url: httpx.URL) -> bytes:
        # The environment may name a proxy, which would reach hosts that this one must not.
        async with (
            httpx.AsyncClient(trust_env=False, timeout=_TIMEOUT_S) as client,
            client.stream("GET", url) as response,
        ):
            if response.status_code != httpx.codes.OK:
                raise InvalidArgumentError(
                    "", f"its host answered {response.status_code}; send the image as a data URL"
                )
            content = bytearray()
            async for chunk in response.aiter_bytes():
                content += chunk
                if len(content) > self._limits.max_bytes:
                    raise InvalidArgumentError("", f"the image is over {self._limits.max_bytes} bytes")
            return bytes(content)


def _scheme(url: str) -> str:
    """Return the scheme of a URL in lower case; "" without one."""
    return url.partition(":")[0].lower() if ":" in url else ""
