"""What all clients share: a channel, deadlines, and errors of the contract."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, ClassVar, Self

from infra.contract.errors import InvalidArgumentError
from infra.runtime.channel import ChannelOptions, aio_channel
from infra.runtime.deadline import LONG_TIMEOUT_S, QUICK_TIMEOUT_S
from infra.runtime.error_table import translated


class ServiceClient:
    """A channel to one service, and its stub."""

    stub_class: ClassVar[Any]

    def __init__(self, target: str | ChannelOptions) -> None:
        options = ChannelOptions(target) if isinstance(target, str) else target
        self.target = options.target
        self._channel = aio_channel(options)
        self._stub = self.stub_class(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the channel; calls under way are cancelled."""
        await self._channel.close()

    async def call(self, method: str, request: Any, timeout_s: float | None, default_s: float = QUICK_TIMEOUT_S) -> Any:
        """Return the response of a unary method, which has `default_s` seconds where `timeout_s` is None."""
        with translated(self.target):
            return await getattr(self._stub, method)(request, timeout=default_s if timeout_s is None else timeout_s)

    async def stream_of(
        self, method: str, request: Any, timeout_s: float | None, default_s: float = LONG_TIMEOUT_S
    ) -> AsyncIterator[Any]:
        """Yield the messages of a streaming method. Closing the iterator early cancels the call."""
        call = getattr(self._stub, method)(request, timeout=default_s if timeout_s is None else timeout_s)
        try:
            with translated(self.target):
                async for message in call:
                    yield message
        finally:
            call.cancel()


@contextmanager
def renamed_fields(names: Mapping[str, str]) -> Iterator[None]:
    """Rename fields in an InvalidArgumentError raised within: `names` maps those of a request to the caller's."""
    try:
        yield
    except InvalidArgumentError as error:
        for field, name in names.items():
            if error.field == field or error.field.startswith((f"{field}.", f"{field}[")):
                raise error.renamed(name + error.field.removeprefix(field)) from error
        raise
