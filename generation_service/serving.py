"""The service behind its port, from loading to the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from generation_service.app import GenerationStack, generation_stack
from generation_service.server import GenerationServicer, add_to
from generation_service.settings import GenerationSettings
from infra.runtime.server import aio_server


def serve_forever(settings: GenerationSettings) -> None:
    """Serve until a stop signal."""
    asyncio.run(_serve(settings))


async def _serve(settings: GenerationSettings) -> None:
    server = aio_server(settings.server)
    await server.start()
    try:
        async with _on_a_thread(settings) as stack:
            add_to(server, GenerationServicer(stack))
            await server.serve()
    except Exception:
        await server.stop()
        raise


@asynccontextmanager
async def _on_a_thread(settings: GenerationSettings) -> AsyncIterator[GenerationStack]:
    """Load and end the stack beside the event loop, so that health answers meanwhile."""
    manager = generation_stack(settings)
    async with AsyncExitStack() as cleanup:
        stack = await asyncio.to_thread(manager.__enter__)
        cleanup.push_async_callback(asyncio.to_thread, manager.__exit__, None, None, None)
        yield stack
