"""Evaluation jobs with real Redis, Celery and worker processes, each of which is killed or stopped in turn."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from infra.contract.errors import InvalidArgumentError, OverloadedError
from infra.contract.prompt import Prompt
from infra.runtime.embedded_redis import embedded_redis
from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.clients.evaluation import EvaluationClient
from orchestrator.evaluation.job import EvaluationState
from orchestrator.evaluation.spec import DatasetSpec, EvaluatedStrategy, EvaluationSpec
from orchestrator.jobs.celery import QUEUE, make_app
from orchestrator.jobs.ledger.store import RedisStore
from tests.support.harness.job_processes import Cluster, Gate, Process, cluster, records_of, until, write_dataset

# Each test starts several processes; on a busy machine one start alone takes many seconds.
pytestmark = pytest.mark.timeout(600)


def spec_of(*files: Path, strategies: tuple[AnswerStrategy, ...], shard_size: int = 4) -> EvaluationSpec:
    return EvaluationSpec(
        datasets=tuple(DatasetSpec(file.stem, str(file), adapter_id=file.stem) for file in files),
        strategies=tuple(EvaluatedStrategy(strategy) for strategy in strategies),
        shard_size=shard_size,
    )


def assert_every_sample_once(output_uri: str, expected: int) -> None:
    keys = [record.sample.key for record in records_of(output_uri)]
    assert len(keys) == expected
    assert len(set(keys)) == expected


async def test_job_runs_end_to_end(running: Cluster) -> None:
    gmail = write_dataset(running.data, "gmail", episodes=3, bad_rows=1)
    ebay = write_dataset(running.data, "ebay", episodes=2)
    await running.start_worker()
    spec = spec_of(gmail, ebay, strategies=tuple(AnswerStrategy))
    created = await running.client.create(spec)
    job = await running.ended(created.evaluation_id)
    assert job.state is EvaluationState.SUCCEEDED
    assert (job.total_samples, job.done_samples, job.failed_samples, job.bad_rows) == (70, 70, 0, 1)
    assert_every_sample_once(job.output_uri, 70)
    report = await running.client.report(created.evaluation_id)
    assert report.output_uri == job.output_uri
    assert "mixture" in report.summary_markdown
    assert json.loads(report.summary_json) == json.loads((Path(job.output_uri) / "summary.json").read_text())
    oracle = [record for record in records_of(job.output_uri) if record.sample.strategy.label == "oracle"]
    assert {record.applied[0].adapter_id for record in oracle} == {"gmail", "ebay"}


async def test_celery_events_show_work_done(running: Cluster, redis_url: str) -> None:
    results: list[str] = []
    app = make_app(redis_url, visibility_timeout_s=60)

    def listen() -> None:
        with app.connection() as connection:
            receiver = app.events.Receiver(
                connection, {"task-succeeded": lambda event: results.append(event["result"])}
            )
            with suppress(TimeoutError):
                for _ in receiver.consume(limit=None, timeout=60):
                    if any("report" in result for result in results):
                        return

    listening = asyncio.create_task(asyncio.to_thread(listen))
    worker = await running.start_worker()
    created = await running.client.create(
        spec_of(write_dataset(running.data, "gmail", episodes=3), strategies=(AnswerStrategy.BASE,))
    )
    await running.ended(created.evaluation_id)
    await listening
    job = created.evaluation_id
    assert sorted(results) == [f"'{job} report'", f"'{job} shard 0: done'", f"'{job} shard 1: last'"]
    assert worker.exit_status is None


async def test_shard_of_killed_worker_is_finished_by_another_within_seconds(running: Cluster) -> None:
    dataset = write_dataset(running.data, "gmail", episodes=16)
    gate = running.tiers.generation.before = Gate(free=6)
    doomed, other = await asyncio.gather(running.start_worker(), running.start_worker())
    created = await running.client.create(spec_of(dataset, strategies=(AnswerStrategy.MIXTURE,), shard_size=8))
    await until(lambda: len(gate.held) == 2)
    doomed.kill()
    killed = time.monotonic()
    gate.open()
    job = await running.ended(created.evaluation_id)
    assert time.monotonic() - killed < 60  # The visibility timeout of its message is 1,800 s.
    assert job.state is EvaluationState.SUCCEEDED
    assert (job.done_samples, job.failed_samples) == (32, 0)
    assert_every_sample_once(job.output_uri, 32)
    assert other.exit_status is None


async def test_job_survives_death_of_all_workers_and_asks_no_recorded_sample_again(
    running: Cluster,
) -> None:
    dataset = write_dataset(running.data, "gmail", episodes=10)
    gate = running.tiers.generation.before = Gate(free=9)
    worker = await running.start_worker(concurrency=2)
    created = await running.client.create(spec_of(dataset, strategies=(AnswerStrategy.BASE,), shard_size=10))
    await until(lambda: gate.held)
    async for job in running.client.watch(created.evaluation_id):
        if job.done_samples == 9:
            break
    worker.kill()
    gate.open()
    calls = running.tiers.generation.calls
    await running.start_worker()
    job = await running.ended(created.evaluation_id)
    assert job.state is EvaluationState.SUCCEEDED
    assert_every_sample_once(job.output_uri, 20)
    assert running.tiers.generation.calls - calls == 11


async def test_sample_that_kills_its_worker_is_one_failed_sample(running: Cluster) -> None:
    dataset = write_dataset(running.data, "gmail", episodes=6, steps=1)
    victims: list[Process] = []

    async def poison(prompt: Prompt, _peer: str) -> None:
        if "errand 3" in prompt.user_text:
            victims[-1].kill()

    running.tiers.generation.before = poison
    victims.append(await running.start_worker(sample_attempts=2))
    created = await running.client.create(spec_of(dataset, strategies=(AnswerStrategy.BASE,), shard_size=6))
    for _ in range(2):
        await until(lambda: victims[-1].exit_status is not None)
        victims.append(await running.start_worker(sample_attempts=2))
    job = await running.ended(created.evaluation_id)
    assert job.state is EvaluationState.SUCCEEDED
    assert (job.done_samples, job.failed_samples) == (6, 1)
    assert_every_sample_once(job.output_uri, 6)
    (failed,) = [record for record in records_of(job.output_uri) if record.error is not None]
    assert failed.sample.episode_id == "000003"
    assert failed.error is not None
    assert "worker ended 2 times" in failed.error.message


async def test_sample_that_always_fails_is_recorded_with_its_error(running: Cluster) -> None:
    dataset = write_dataset(running.data, "gmail", episodes=6, steps=1)
    running.tiers.generation.failures["errand 3"] = InvalidArgumentError("prompt", "too long by 12 tokens")
    await running.start_worker()
    created = await running.client.create(spec_of(dataset, strategies=(AnswerStrategy.MIXTURE,)))
    job = await running.ended(created.evaluation_id)
    assert job.state is EvaluationState.SUCCEEDED
    assert (job.done_samples, job.failed_samples) == (6, 1)
    (failed,) = [record for record in records_of(job.output_uri) if record.error is not None]
    assert failed.error is not None
    assert (failed.error.reason, failed.sample.episode_id) == ("INVALID_ARGUMENT", "000003")


async def test_full_generation_service_delays_samples_and_fails_none(running: Cluster) -> None:
    dataset = write_dataset(running.data, "gmail", episodes=8, steps=1)
    refused = 0

    async def full_at_first(_prompt: Prompt, _peer: str) -> None:
        nonlocal refused
        if refused < 12:
            refused += 1
            raise OverloadedError("the queue is full")

    running.tiers.generation.before = full_at_first
    await running.start_worker()
    created = await running.client.create(spec_of(dataset, strategies=(AnswerStrategy.BASE,)))
    job = await running.ended(created.evaluation_id)
    assert (job.done_samples, job.failed_samples) == (8, 0)


async def test_cancelled_job_begins_no_further_sample_and_reports_recorded_ones(running: Cluster) -> None:
    dataset = write_dataset(running.data, "gmail", episodes=40, steps=1)
    gate = running.tiers.generation.before = Gate(free=5)
    await running.start_worker(concurrency=2)
    created = await running.client.create(spec_of(dataset, strategies=(AnswerStrategy.BASE,), shard_size=10))
    await until(lambda: gate.held)
    await running.client.cancel(created.evaluation_id)
    gate.open()
    job = await running.ended(created.evaluation_id)
    assert job.state is EvaluationState.CANCELLED
    assert 5 <= job.done_samples <= 7
    assert running.tiers.generation.calls == job.done_samples
    assert_every_sample_once(job.output_uri, job.done_samples)
    assert (await running.client.report(created.evaluation_id)).summary_markdown


async def test_stopped_worker_finishes_its_samples_and_releases_its_shard(running: Cluster) -> None:
    dataset = write_dataset(running.data, "gmail", episodes=20, steps=1)
    gate = running.tiers.generation.before = Gate(free=5)
    worker = await running.start_worker(concurrency=2)
    created = await running.client.create(spec_of(dataset, strategies=(AnswerStrategy.BASE,), shard_size=20))
    await until(lambda: gate.held)
    stopping = asyncio.create_task(worker.stop())
    await until(lambda: "Warm" in worker.log.read_text() or "stopping" in worker.log.read_text())
    gate.open()
    assert await stopping == 0
    calls = running.tiers.generation.calls
    assert calls < 20
    await running.start_worker()
    job = await running.ended(created.evaluation_id)
    assert_every_sample_once(job.output_uri, 20)
    assert running.tiers.generation.calls == 20


async def test_stopped_worker_leaves_slow_sample_to_another(running: Cluster) -> None:
    dataset = write_dataset(running.data, "gmail", episodes=4, steps=1)
    gate = running.tiers.generation.before = Gate(free=1)
    worker = await running.start_worker(shutdown_grace_s=0.2)
    created = await running.client.create(spec_of(dataset, strategies=(AnswerStrategy.BASE,)))
    await until(lambda: gate.held)
    assert await worker.stop() == 0
    gate.open()
    await running.start_worker()
    job = await running.ended(created.evaluation_id)
    assert (job.done_samples, job.failed_samples) == (4, 0)
    assert_every_sample_once(job.output_uri, 4)


async def test_stopped_worker_exits_within_its_grace_while_redis_is_away(tmp_path: Path) -> None:
    with ExitStack() as redis:
        url = redis.enter_context(embedded_redis(tmp_path / "redis"))
        async with cluster(tmp_path, url) as running:
            dataset = write_dataset(running.data, "gmail", episodes=4, steps=1)
            gate = running.tiers.generation.before = Gate(free=1)
            worker = await running.start_worker()
            await running.client.create(spec_of(dataset, strategies=(AnswerStrategy.BASE,)))
            await until(lambda: gate.held)
            await asyncio.to_thread(redis.close)
            stopped = time.monotonic()
            assert await worker.stop() == 0
            # The retries of one call alone would take more than 30 s.
            assert time.monotonic() - stopped < 28


async def test_job_continues_after_orchestrator_was_killed_and_restarted(running: Cluster) -> None:
    dataset = write_dataset(running.data, "gmail", episodes=10)
    gate = running.tiers.generation.before = Gate(free=5)
    doomed = running.start("orchestrator", "orchestrator-1")
    async with EvaluationClient(await doomed.ready()) as client:
        await running.start_worker()
        spec = spec_of(dataset, strategies=(AnswerStrategy.MIXTURE,))
        created = await client.create(spec, "nightly")
        await until(lambda: gate.held)
        doomed.kill()
    gate.open()
    restarted = running.start("orchestrator", "orchestrator-2")
    async with EvaluationClient(await restarted.ready()) as client:
        assert (await client.create(spec, "nightly")).evaluation_id == created.evaluation_id
        async for job in client.watch(created.evaluation_id):
            last = job
    assert last.state is EvaluationState.SUCCEEDED
    assert_every_sample_once(last.output_uri, 20)
    assert await restarted.stop() == 0


async def test_workers_are_woken_for_shards_whose_messages_were_lost(running: Cluster, redis_url: str) -> None:
    dataset = write_dataset(running.data, "gmail", episodes=6)
    created = await running.client.create(spec_of(dataset, strategies=(AnswerStrategy.MIXTURE,)))
    async with RedisStore(redis_url) as store:
        assert await store.redis.delete(QUEUE) == 1
    assert "no worker is running" in created.stalled
    await running.start_worker()
    assert (await running.client.get(created.evaluation_id)).stalled == ""
    job = await running.ended(created.evaluation_id)
    assert job.state is EvaluationState.SUCCEEDED
    assert_every_sample_once(job.output_uri, 12)


async def test_job_survives_restart_of_redis(tmp_path: Path) -> None:
    with ExitStack() as first:
        url = first.enter_context(embedded_redis(tmp_path / "redis"))
        async with cluster(tmp_path, url) as running:
            dataset = write_dataset(running.data, "gmail", episodes=20)
            gate = running.tiers.generation.before = Gate(free=11)
            await running.start_worker()
            created = await running.client.create(spec_of(dataset, strategies=(AnswerStrategy.MIXTURE,)))
            await until(lambda: gate.held)
            await asyncio.to_thread(first.close)
            gate.open()
            with embedded_redis(tmp_path / "redis") as again:
                assert again == url
                job = await running.ended(created.evaluation_id)
                assert job.state is EvaluationState.SUCCEEDED
                assert job.failed_samples == 0
                assert_every_sample_once(job.output_uri, 40)


async def test_job_continues_after_redis_was_killed(running: Cluster, redis_url: str) -> None:
    dataset = write_dataset(running.data, "gmail", episodes=15)
    gate = running.tiers.generation.before = Gate(free=11)
    await running.start_worker()
    created = await running.client.create(spec_of(dataset, strategies=(AnswerStrategy.MIXTURE,)))
    await until(lambda: gate.held)
    async with RedisStore(redis_url) as store:
        os.kill(int((await store.redis.info("server"))["process_id"]), signal.SIGKILL)
    gate.open()
    job = await running.ended(created.evaluation_id)
    assert job.state is EvaluationState.SUCCEEDED
    assert (job.done_samples, job.failed_samples) == (30, 0)
    assert_every_sample_once(job.output_uri, 30)


async def test_job_continues_after_generation_service_was_killed_and_restarted(tmp_path: Path, redis_url: str) -> None:
    module, settings = "tests.support.servers.generation_process", {"delay_s": 0.2}
    doomed = Process(module, settings, tmp_path, "generation-1")
    address = await doomed.ready()
    async with cluster(tmp_path, redis_url, generation_target=address, concurrency=2) as running:
        dataset = write_dataset(running.data, "gmail", episodes=30, steps=1)
        await running.start_worker()
        created = await running.client.create(spec_of(dataset, strategies=(AnswerStrategy.MIXTURE,)))
        async for job in running.client.watch(created.evaluation_id):
            if job.done_samples > 2:
                break
        doomed.kill()
        assert not (await running.client.get(created.evaluation_id)).state.ended
        running.stack.callback(Process(module, {**settings, "address": address}, tmp_path, "generation-2").kill)
        job = await running.ended(created.evaluation_id)
    assert job.state is EvaluationState.SUCCEEDED
    assert (job.done_samples, job.failed_samples) == (30, 0)
    assert_every_sample_once(job.output_uri, 30)
