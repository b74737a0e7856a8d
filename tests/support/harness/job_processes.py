"""An orchestrator in the test's process, workers and servers in their own processes, and datasets of any size."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.contract.prompt import Prompt
from infra.runtime.settings import as_arguments
from orchestrator.app import orchestrator
from orchestrator.clients.evaluation import EvaluationClient
from orchestrator.evaluation.records import Record, read_records
from orchestrator.settings import OrchestratorSettings
from tests.support.servers.tiers import FakeTiers, fake_tiers

START_TIMEOUT_S = 300.0


def write_dataset(folder: Path, name: str, episodes: int, steps: int = 2, bad_rows: int = 0) -> Path:
    """Write a dataset of `episodes` good rows with `steps` screens each, and of `bad_rows` that cannot be read."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "screen.png").write_bytes(b"the fake model does not read images")
    rows = [
        json.dumps(
            {
                "images": ["screen.png"] * steps,
                "query": "<image>\n" * steps + f"Use {name} for errand {episode}",
                "response": "\n".join(f'Click on button with the text "{name} {step}"' for step in range(steps)),
                "episode_id": f"{episode:06d}",
            }
        )
        for episode in range(episodes)
    ]
    file = folder / f"{name}.jsonl"
    file.write_text("\n".join([*rows, *["{broken"] * bad_rows]) + "\n", encoding="utf-8")
    return file


async def until(condition: Callable[[], Any], timeout_s: float = START_TIMEOUT_S) -> None:
    """Wait for a condition that another process or task makes true."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.02)


class Process:
    """A tier in its own process, ready once its ready file exists."""

    def __init__(self, module: str, settings: dict[str, Any], folder: Path, name: str) -> None:
        self.ready_file = folder / f"{name}.ready"
        self.log = folder / f"{name}.log"
        arguments = as_arguments({**settings, "ready_file": self.ready_file})
        with self.log.open("ab") as log:
            self._process = subprocess.Popen([sys.executable, "-m", module, *arguments], stdout=log, stderr=log)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        return self._process.poll()

    async def ready(self) -> str:
        """Wait until the tier serves; return its address."""
        await until(lambda: self.ready_file.exists() or self.exit_status is not None)
        if self.exit_status is not None:
            raise AssertionError(f"{self.log} ended:\n{self.log.read_text()}")
        address: str = json.loads(self.ready_file.read_text())["address"]
        return address

    def kill(self) -> None:
        """Kill the process as the kernel would."""
        self._process.kill()
        self._process.wait()

    async def stop(self) -> int:
        """Stop the process with SIGTERM; return its exit status."""
        if self.exit_status is None:
            self._process.send_signal(signal.SIGTERM)
        return await asyncio.to_thread(self._process.wait, 60)


class Gate:
    """A hook of the fake model that holds every answer after the first few until it is opened.

    `held` are the callers whose answers it has held.
    """

    def __init__(self, free: int) -> None:
        self.free = free
        self.held: set[str] = set()
        self._open = asyncio.Event()

    async def __call__(self, _prompt: Prompt, peer: str) -> None:
        if self.free > 0:
            self.free -= 1
            return
        self.held.add(peer)
        await self._open.wait()

    def open(self) -> None:
        self._open.set()


@dataclass
class Cluster:
    """Fake services, a Redis, and an orchestrator in the test's process; tests start workers themselves."""

    tiers: FakeTiers
    folder: Path
    data: Path
    settings: dict[str, Any]
    client: EvaluationClient
    stack: AsyncExitStack
    workers: int = 0

    async def start_worker(self, **changes: object) -> Process:
        """Start a worker and wait until it consumes messages."""
        self.workers += 1
        worker = self.start("orchestrator.jobs.worker", f"worker-{self.workers}", **changes)
        await worker.ready()
        return worker

    def start(self, module: str, name: str, **changes: object) -> Process:
        """Start a process of the orchestrator on the same Redis; it is killed when the test ends."""
        process = Process(module, {**self.settings, "address": "127.0.0.1:0", **changes}, self.folder, name)
        self.stack.callback(process.kill)
        return process

    async def ended(self, evaluation_id: str, timeout_s: float = 300) -> Any:
        """Return a job once it has ended."""
        async with asyncio.timeout(timeout_s):
            async for job in self.client.watch(evaluation_id):
                last = job
        return last


def short_lease_settings(tiers: FakeTiers, folder: Path, data: Path) -> dict[str, Any]:
    """Return settings with short leases for an orchestrator and its workers."""
    return {
        "gateway_address": "127.0.0.1:0",
        "retrieval_target": tiers.retrieval_target,
        "generation_target": tiers.generation_target,
        "dataset_roots": (data,),
        "output_dir": str(folder / "out"),
        "shard_lease_s": 1.5,
        "shard_resend_s": 1.0,
        "reconcile_interval_s": 0.2,
        "worker_shards": 1,
        "shutdown_grace_s": 1,
    }


@asynccontextmanager
async def cluster(folder: Path, redis_url: str, **changes: object) -> AsyncIterator[Cluster]:
    """Yield a cluster with short leases."""
    data = folder / "data"
    data.mkdir()
    async with AsyncExitStack() as stack:
        tiers = await stack.enter_async_context(fake_tiers())
        settings = {**short_lease_settings(tiers, folder, data), "redis_url": redis_url, **changes}
        orchestrator_settings = OrchestratorSettings(**{**settings, "address": "127.0.0.1:0"})
        tier = await stack.enter_async_context(orchestrator(orchestrator_settings, redis_url))
        server = await stack.enter_async_context(tier.server)
        client = await stack.enter_async_context(EvaluationClient(server.address))
        yield Cluster(tiers, folder, data, settings, client, stack)


def records_of(output_uri: str) -> list[Record]:
    """Return the records that a job wrote."""
    return read_records(Path(output_uri) / "records.jsonl")
