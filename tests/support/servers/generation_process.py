"""`python -m tests.support.servers.generation_process`: fake generation services in a process that tests can kill.

Each of `--replicas` answers `--slots` calls at a time in `--delay-s` seconds each; further calls wait.
"""

from __future__ import annotations

import argparse
import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

from loraretriever.v1 import generation_service_pb2_grpc

from infra.contract.prompt import Prompt
from infra.runtime.lifecycle import ready_file
from infra.runtime.server import GrpcServer
from infra.runtime.settings import ServerOptions
from tests.support.servers.tiers import FakeGeneration, Hook


def replica(address: str, slots: int, delay_s: float) -> GrpcServer:
    """Return a bound server with a fixed latency and capacity."""
    server = GrpcServer(ServerOptions(address=address, shutdown_grace_s=0))
    server.add(
        FakeGeneration(before=_busy(slots, delay_s)),
        generation_service_pb2_grpc.add_GenerationServiceServicer_to_server,
        "loraretriever.v1.GenerationService",
    )
    return server


def _busy(slots: int, delay_s: float) -> Hook:
    free = asyncio.Semaphore(slots)

    async def occupy_slot(_prompt: Prompt, _peer: str) -> None:
        async with free:
            await asyncio.sleep(delay_s)

    return occupy_slot


async def serve(options: argparse.Namespace) -> None:
    """Serve until the process is killed; the ready file holds all addresses, separated by commas."""
    async with AsyncExitStack() as stack:
        servers = [replica(options.address, options.slots, options.delay_s) for _ in range(options.replicas)]
        for server in servers:
            await stack.enter_async_context(server)
        stack.enter_context(ready_file(options.ready_file, ",".join(server.address for server in servers)))
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", default="127.0.0.1:0")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--delay-s", type=float, default=0.0)
    parser.add_argument("--ready-file", type=Path, required=True)
    asyncio.run(serve(parser.parse_args()))
