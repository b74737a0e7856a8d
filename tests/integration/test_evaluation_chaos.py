"""Evaluation jobs while everything around them is killed: recorded answers stay, every sample is recorded once."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from infra.contract.errors import UnavailableError
from infra.contract.prompt import Prompt
from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.evaluation.job import EvaluationState
from orchestrator.evaluation.spec import DatasetSpec, EvaluatedStrategy, EvaluationSpec
from orchestrator.jobs.ledger.store import RedisStore
from tests.support.harness.job_processes import Cluster, Process, cluster, records_of, until, write_dataset

# Each test starts several processes; on a busy machine one start alone takes many seconds.
pytestmark = pytest.mark.timeout(600)


def spec_of(file: Path, shard_size: int) -> EvaluationSpec:
    base = (EvaluatedStrategy(AnswerStrategy.BASE),)
    return EvaluationSpec((DatasetSpec(file.stem, str(file)),), base, shard_size=shard_size)


async def test_sample_that_kills_its_worker_fails_no_concurrent_sample(running: Cluster) -> None:
    dataset = write_dataset(running.data, "gmail", episodes=16, steps=1)
    victims: list[Process] = []

    async def poison(prompt: Prompt, _peer: str) -> None:
        if prompt.user_text.endswith("errand 3"):
            await asyncio.sleep(0.2)
            victims[-1].kill()
        await asyncio.sleep(0.6)

    running.tiers.generation.before = poison
    settings = {"worker_shards": 2, "concurrency": 4, "sample_attempts": 3}
    victims.append(await running.start_worker(**settings))
    created = await running.client.create(spec_of(dataset, shard_size=8))
    for _ in range(3):
        await until(lambda: victims[-1].exit_status is not None)
        victims.append(await running.start_worker(**settings))
    job = await running.ended(created.evaluation_id)
    assert (job.state, job.done_samples) == (EvaluationState.SUCCEEDED, 16)
    failed = [record.sample.episode_id for record in records_of(job.output_uri) if record.error is not None]
    assert failed == ["000003"]


async def test_small_job_is_reported_while_earlier_huge_job_runs(running: Cluster) -> None:
    async def slow(_prompt: Prompt, _peer: str) -> None:
        await asyncio.sleep(0.05)

    running.tiers.generation.before = slow
    huge = await running.client.create(spec_of(write_dataset(running.data, "gmail", 400, steps=1), shard_size=2))
    small = await running.client.create(spec_of(write_dataset(running.data, "ebay", 6, steps=1), shard_size=2))
    await running.start_worker(concurrency=2)
    assert (await running.ended(small.evaluation_id)).state is EvaluationState.SUCCEEDED
    begun = await running.client.get(huge.evaluation_id)
    assert begun.done_samples < 100
    await running.client.cancel(huge.evaluation_id)
    assert (await running.ended(huge.evaluation_id)).state is EvaluationState.CANCELLED


async def test_lost_message_does_not_delay_job_while_another_fills_queue(running: Cluster, redis_url: str) -> None:
    async def slow(_prompt: Prompt, _peer: str) -> None:
        await asyncio.sleep(0.05)

    running.tiers.generation.before = slow
    lost = await running.client.create(spec_of(write_dataset(running.data, "ebay", 6, steps=1), shard_size=2))
    async with RedisStore(redis_url) as store:
        await store.redis.delete("loraretriever.evaluation")
    other = await running.client.create(spec_of(write_dataset(running.data, "gmail", 400, steps=1), shard_size=2))
    await running.start_worker(concurrency=2)
    assert (await running.ended(lost.evaluation_id)).state is EvaluationState.SUCCEEDED
    assert not (await running.client.get(other.evaluation_id)).state.ended


async def test_job_continues_after_redis_took_no_changes(running: Cluster, redis_url: str) -> None:
    async def slow(_prompt: Prompt, _peer: str) -> None:
        await asyncio.sleep(0.1)

    running.tiers.generation.before = slow
    worker = await running.start_worker(concurrency=2)
    created = await running.client.create(spec_of(write_dataset(running.data, "gmail", 60, steps=1), shard_size=5))
    async with RedisStore(redis_url) as store:
        await asyncio.sleep(0.5)
        await store.redis.replicaof("127.0.0.1", 1)
        await asyncio.sleep(2.5)
        await store.redis.replicaof("NO", "ONE")
    job = await running.ended(created.evaluation_id)
    assert worker.exit_status is None
    assert (job.state, job.done_samples, job.failed_samples) == (EvaluationState.SUCCEEDED, 60, 0)
    assert len({record.sample.key for record in records_of(job.output_uri)}) == 60


async def test_job_ends_with_every_sample_once_while_everything_is_killed(tmp_path: Path, redis_url: str) -> None:
    module, settings = "tests.support.servers.generation_process", {"delay_s": 0.05}
    replicas = [Process(module, settings, tmp_path, f"generation-{number}") for number in range(2)]
    addresses = await asyncio.gather(*(replica.ready() for replica in replicas))
    rng = random.Random(7)
    async with cluster(tmp_path, redis_url, generation_target=",".join(addresses), concurrency=2) as running:
        dataset = write_dataset(running.data, "gmail", episodes=300, steps=1)
        workers = [await running.start_worker(sample_attempts=50) for _ in range(2)]
        created = await running.client.create(spec_of(dataset, shard_size=5))
        kills = ["worker", "redis", "replica", "worker", "replica", "redis", "worker"]
        for victim in kills:
            await asyncio.sleep(rng.uniform(0.2, 0.6))
            number = rng.randrange(2)
            if victim == "worker":
                workers[number].kill()
                workers[number] = await running.start_worker(sample_attempts=50)
            elif victim == "redis":
                await kill_redis(redis_url)
            else:
                replicas[number].kill()
                again = {**settings, "address": addresses[number]}
                replicas[number] = Process(module, again, tmp_path, f"generation-{time.monotonic_ns()}")
                running.stack.callback(replicas[number].kill)
        job = await running.ended(created.evaluation_id)
        alive = [worker for worker in workers if worker.exit_status is None]
    for replica in replicas:
        replica.kill()
    assert len(alive) == 2
    assert (job.state, job.done_samples, job.failed_samples) == (EvaluationState.SUCCEEDED, 300, 0)
    keys = [record.sample.key for record in records_of(job.output_uri)]
    assert keys == [f"base/gmail/{episode:06d}/0" for episode in range(300)]


async def kill_redis(redis_url: str) -> None:
    """Kill the server as the kernel would; its supervisor restarts it."""
    async with RedisStore(redis_url, retries=20) as store:
        with suppress(UnavailableError):
            os.kill(int((await store.redis.info("server"))["process_id"]), signal.SIGKILL)
