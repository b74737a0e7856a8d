"""An orchestrator with its own Redis: killed under workers, restarted on the same folder; and its limits on jobs."""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from infra.contract.errors import InvalidArgumentError
from infra.runtime.embedded_redis import embedded_redis
from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.clients.evaluation import EvaluationClient
from orchestrator.evaluation.job import EvaluationState
from orchestrator.evaluation.spec import DatasetSpec, EvaluatedStrategy, EvaluationSpec
from tests.support.harness.job_processes import (
    Gate,
    Process,
    cluster,
    records_of,
    short_lease_settings,
    until,
    write_dataset,
)
from tests.support.servers.tiers import fake_tiers


def spec_of(file: Path) -> EvaluationSpec:
    return EvaluationSpec(
        (DatasetSpec(file.stem, str(file)),), (EvaluatedStrategy(AnswerStrategy.MIXTURE),), shard_size=5
    )


def logged_url(orchestrator: Process) -> str:
    """Return the address that the orchestrator logs for workers."""
    url = re.search(r"redis_url='?([^\s']+)", orchestrator.log.read_text())
    assert url is not None
    return url[1]


@pytest.mark.parametrize("name", ["redis", "a folder with blanks"])
async def test_job_ends_with_every_sample_once_after_orchestrator_with_redis_was_killed(
    tmp_path: Path, name: str
) -> None:
    data = tmp_path / "data"
    async with AsyncExitStack() as stack:
        tiers = await stack.enter_async_context(fake_tiers())
        gate = tiers.generation.before = Gate(free=11)
        settings = {**short_lease_settings(tiers, tmp_path, data), "address": "127.0.0.1:0"}

        def start(module: str, label: str, **changes: object) -> Process:
            process = Process(module, {**settings, **changes}, tmp_path, label)
            stack.callback(process.kill)
            return process

        doomed = start("orchestrator", "orchestrator-1", redis_dir=tmp_path / name)
        address = await doomed.ready()
        url = logged_url(doomed)
        workers = [start("orchestrator.jobs.worker", f"worker-{number}", redis_url=url) for number in range(2)]
        await asyncio.gather(*(worker.ready() for worker in workers))
        async with EvaluationClient(address) as client:
            created = await client.create(spec_of(write_dataset(data, "gmail", episodes=20)))
            await until(lambda: len(gate.held) == 2)
        doomed.kill()
        restarted = start("orchestrator", "orchestrator-2", redis_dir=tmp_path / name)
        gate.open()
        async with EvaluationClient(await restarted.ready()) as client, asyncio.timeout(60):
            async for job in client.watch(created.evaluation_id):
                last = job
        assert logged_url(restarted) == url
        assert [worker.exit_status for worker in workers] == [None, None]
        assert await restarted.stop() == 0
    assert (last.state, last.done_samples, last.failed_samples) == (EvaluationState.SUCCEEDED, 40, 0)
    keys = [record.sample.key for record in records_of(last.output_uri)]
    assert len(keys) == len(set(keys)) == 40


async def test_job_larger_than_settings_allow_is_refused(tmp_path: Path) -> None:
    with embedded_redis(tmp_path / "redis") as url:
        async with cluster(tmp_path, url, max_samples=10, max_dataset_bytes=3000) as running:
            small = write_dataset(running.data, "small", episodes=5)
            assert (await running.client.create(spec_of(small))).total_samples == 10
            with pytest.raises(InvalidArgumentError, match=r"^spec\.datasets: .* 12 samples .* limit of 10;"):
                await running.client.create(spec_of(write_dataset(running.data, "large", episodes=6)))
            with pytest.raises(InvalidArgumentError, match="more than the limit of 3,000"):
                await running.client.create(spec_of(write_dataset(running.data, "huge", episodes=20)))
