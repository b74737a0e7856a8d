"""How close to linear is the speed-up of an evaluation when generation replicas are added, 1 -> 32?

The replicas are simulated: each answers `--slots` samples at a time in `--latency` seconds, and computes nothing.
Everything else is real: planning, the ledger in an embedded Redis, Celery, worker processes, gRPC, records and report.
A replica gets the same number of samples in every run, so linear means the same time with any number of replicas.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import Bar, Findings, Timing, run, say

from infra.runtime.embedded_redis import embedded_redis
from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.evaluation.job import Evaluation
from orchestrator.evaluation.spec import DatasetSpec, EvaluatedStrategy, EvaluationSpec
from tests.support.harness.job_processes import Cluster, Process, cluster, records_of, write_dataset

QUESTION = "How close to linear does an evaluation speed up when generation replicas are added?"
_SHARDS_PER_REPLICA = 2
_IN_FLIGHT_PER_SLOT = 2  # One being answered, one waiting for the slot: a replica is never idle between two samples.
_LEAST_OF_LINEAR = 0.95


@dataclass(frozen=True)
class Run:
    """One job: its samples, seconds from creation to last record and to report, and CPU seconds of all processes."""

    samples: int
    recorded_s: float
    reported_s: float
    cpu_s: float


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--samples", type=int, default=2048, help="of the run with most replicas, 10000 in full")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 8, 32], help="numbers of replicas to compare")
    parser.add_argument("--slots", type=int, default=4, help="samples that one replica answers at a time")
    parser.add_argument("--latency", type=float, default=1.6, help="seconds an answer takes")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="worker processes at the most")
    parser.set_defaults(repetitions=1)


def measure(options: argparse.Namespace) -> Findings:
    """Run a job with each number of replicas, interleaved, and compare samples per second and replica."""
    sizes = sorted(set(options.replicas))
    if len(sizes) < 2 or sizes[0] < 1 or options.slots < 1 or options.samples < sizes[-1]:
        raise SystemExit("give two or more numbers of --replicas, a slot or more, and a sample for every replica")
    runs: dict[int, list[Run]] = {size: [] for size in sizes}
    for _ in range(options.repetitions):
        for size in sizes:
            runs[size].append(asyncio.run(_measure_one(size, options)))
    return _findings(runs, options)


async def _measure_one(replicas: int, options: argparse.Namespace) -> Run:
    samples = round(options.samples * replicas / max(options.replicas))
    with tempfile.TemporaryDirectory(prefix="lr-fanout-") as name:
        folder = Path(name)
        before_s = _cpu_s()
        with embedded_redis(folder / "redis") as redis_url:
            took_s = await _run_job(folder, redis_url, replicas, samples, options)
    done = Run(samples, *took_s, cpu_s=_cpu_s() - before_s)
    say(f"  {replicas} replicas: {samples} samples, every one once, in {done.recorded_s:.1f} s")
    return done


async def _run_job(
    folder: Path, redis_url: str, replicas: int, samples: int, options: argparse.Namespace
) -> tuple[float, float]:
    settings: dict[str, Any] = {"replicas": replicas, "slots": options.slots, "delay_s": options.latency}
    simulated = Process("tests.support.servers.generation_process", settings, folder, "replicas")
    try:
        target = await simulated.ready()
        async with cluster(folder, redis_url, generation_target=target, shard_lease_s=20, shard_resend_s=5) as running:
            dataset = write_dataset(running.data, "gmail", episodes=samples, steps=1)
            await _start_workers(running, replicas, options)
            job, recorded_s, reported_s = await _timed(running, _spec(dataset, samples, replicas))
            _check(job, samples)
    finally:
        simulated.kill()
    return recorded_s, reported_s


async def _start_workers(running: Cluster, replicas: int, options: argparse.Namespace) -> None:
    """Start workers that have twice as many samples under way as the replicas have slots, in two shards per replica."""
    workers = min(options.workers, replicas)
    shares = [share * _SHARDS_PER_REPLICA for share in _shares(replicas, workers)]
    concurrency = max(1, _IN_FLIGHT_PER_SLOT * options.slots // _SHARDS_PER_REPLICA)
    await asyncio.gather(*(running.start_worker(worker_shards=shards, concurrency=concurrency) for shards in shares))


def _shares(total: int, parts: int) -> Iterator[int]:
    return (total // parts + (part < total % parts) for part in range(parts))


def _spec(dataset: Path, samples: int, replicas: int) -> EvaluationSpec:
    return EvaluationSpec(
        datasets=(DatasetSpec("gmail", str(dataset), "gmail"),),
        strategies=(EvaluatedStrategy(AnswerStrategy.BASE),),
        shard_size=max(1, min(40, samples // (2 * replicas * _SHARDS_PER_REPLICA))),
    )


async def _timed(running: Cluster, spec: EvaluationSpec) -> tuple[Evaluation, float, float]:
    started = time.perf_counter()
    created = job = await running.client.create(spec)
    recorded_s = 0.0
    async for job in running.client.watch(created.evaluation_id):
        if job.done_samples == job.total_samples and not recorded_s:
            recorded_s = time.perf_counter() - started
    return job, recorded_s, time.perf_counter() - started


def _check(job: Evaluation, samples: int) -> None:
    """End the benchmark unless every sample has exactly one record, without an error."""
    records = records_of(job.output_uri)
    keys = {record.sample.key for record in records}
    errors = sum(record.error is not None for record in records)
    if not len(records) == len(keys) == job.total_samples == samples or errors:
        raise SystemExit(
            f"{len(records)} records of {len(keys)} samples, {errors} with an error, where {samples} were asked: "
            "the run measures nothing"
        )


def _findings(runs: dict[int, list[Run]], options: argparse.Namespace) -> Findings:
    findings = Findings()
    one, *more = runs
    for size in more:
        ratio = statistics.median(
            _rate_a_replica(many, size) / _rate_a_replica(single, one)
            for many, single in zip(runs[size], runs[one], strict=True)
        )
        bar = Bar.at_least_of(_LEAST_OF_LINEAR) if size == 32 else None
        findings.add_ratio(f"samples_per_s_{size}_replicas_over_linear_from_{one}", ratio, bar)
    for size, size_runs in runs.items():
        capacity = size * options.slots / options.latency
        rate = statistics.median(done.samples / done.recorded_s for done in size_runs)
        findings.add_ratio(f"samples_per_s_{size}_replicas_over_their_capacity", rate / capacity)
        findings.measurements[f"{size} replicas: to the last record"] = Timing(
            tuple(done.recorded_s for done in size_runs)
        )
        findings.measurements[f"{size} replicas: samples/s"] = rate
        findings.measurements[f"{size} replicas: report after the last record, s"] = statistics.median(
            done.reported_s - done.recorded_s for done in size_runs
        )
        findings.measurements[f"{size} replicas: CPU of all processes, starts included, s"] = statistics.median(
            done.cpu_s for done in size_runs
        )
    findings.settings["every sample exactly once"] = True
    return findings


def _rate_a_replica(done: Run, replicas: int) -> float:
    return done.samples / done.recorded_s / replicas


def _cpu_s() -> float:
    usages = [resource.getrusage(scope) for scope in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    run("fanout", QUESTION, measure, add_options)
