"""A stream of answers as server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

from infra.contract.retrieval import Selection
from orchestrator.answering.question import Answer
from orchestrator.gateway.errors import reply_to
from orchestrator.gateway.formats import Format

Event = Selection | str | Answer
_DONE = "data: [DONE]\n\n"


@dataclass(frozen=True)
class OpenStream:
    """A stream of a pipeline, with the events up to its first text, which have been received."""

    received: tuple[Event, ...]
    rest: AsyncGenerator[Event, None]


async def open_stream(events: AsyncGenerator[Event, None]) -> OpenStream:
    """Receive events up to the first text, so that what is refused before it gets its status instead of a stream.

    Raises what the pipeline raises; the stream is closed then.
    """
    received: list[Event] = []
    try:
        async for event in events:
            received.append(event)
            if not isinstance(event, Selection):
                break
    except BaseException:
        await events.aclose()
        raise
    return OpenStream(tuple(received), events)


async def sse(stream: OpenStream, form: Format, *, includes_usage: bool) -> AsyncGenerator[str, None]:
    """Yield the events of a response. An error on the way is the last one, in the shape of a response's error."""
    async with aclosing(stream.rest):
        try:
            async for event in _all(stream):
                match event:
                    case Selection():
                        yield _data(form.begin(event).model_dump_json())
                    case Answer():
                        yield _data(form.end(event).model_dump_json())
                        if includes_usage:
                            yield _data(form.usage(event).model_dump_json())
                    case _:
                        yield _data(form.piece(event).model_dump_json())
        except Exception as error:
            yield _data(json.dumps(reply_to(error).content))
            return
    yield _DONE


async def _all(stream: OpenStream) -> AsyncIterator[Event]:
    for event in stream.received:
        yield event
    async for event in stream.rest:
        yield event


def _data(text: str) -> str:
    return f"data: {text}\n\n"
