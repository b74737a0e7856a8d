"""A job of the largest number of datasets, over loopback gRPC within the default message limit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from infra.contract.errors import InvalidArgumentError
from infra.runtime.embedded_redis import embedded_redis
from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.cli.dataset_args import dataset_specs
from orchestrator.evaluation.spec import MAX_DATASETS, DatasetSpec, EvaluatedStrategy, EvaluationSpec
from orchestrator.jobs.ledger.ledger import Ledger
from orchestrator.jobs.ledger.store import RedisStore
from orchestrator.jobs.ledger.types import NewEvaluation
from orchestrator.jobs.service import DEFAULT_PAGE_SIZE
from tests.support.harness.job_processes import cluster, write_dataset

STRATEGIES = tuple(EvaluatedStrategy(strategy) for strategy in (AnswerStrategy.BASE, AnswerStrategy.ORACLE))


async def test_job_of_thousand_files_and_page_of_such_jobs_fit_message(tmp_path: Path) -> None:
    with embedded_redis(tmp_path / "redis") as url:
        async with cluster(tmp_path, url) as running, RedisStore(url) as store:
            for number in range(MAX_DATASETS):
                write_dataset(running.data, f"app_{number:04d}", episodes=1, steps=2)
            pattern = EvaluationSpec((DatasetSpec("", str(running.data / "*.jsonl"), "gmail"),), STRATEGIES)
            by_pattern = await running.client.create(pattern)
            assert (by_pattern.total_samples, by_pattern.bad_rows) == (4 * MAX_DATASETS, 0)

            named = tuple(replace(dataset, adapter_id="gmail") for dataset in dataset_specs([str(running.data)]))
            by_name = await running.client.create(EvaluationSpec(named, STRATEGIES))
            assert [dataset.name for dataset in by_name.spec.datasets] == [
                dataset.name for dataset in by_pattern.spec.datasets
            ]
            assert {len(dataset.sha256) for dataset in by_name.spec.datasets} == {64}
            assert (await running.client.create(by_name.spec)).spec == by_name.spec

            shard = await Ledger(store).samples.shard(by_name.evaluation_id, "0")
            for _ in range(DEFAULT_PAGE_SIZE):
                await Ledger(store).jobs.publish(NewEvaluation(by_name.spec, [shard], by_name.output_uri))
            jobs = await running.client.list()
            assert [len(job.spec.datasets) for job in jobs] == [MAX_DATASETS] * len(jobs)
            assert len(jobs) >= DEFAULT_PAGE_SIZE

            write_dataset(running.data, "one_more", episodes=1)
            with pytest.raises(InvalidArgumentError, match=r"spec\.datasets\[0\]\.uri: more than 1,000 files match"):
                await running.client.create(pattern)
