"""The matrix command through the services and a worker process to one table."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from infra.contract.composition import Fusion, FusionMethod
from infra.contract.errors import InvalidArgumentError
from infra.runtime.embedded_redis import embedded_redis
from orchestrator.cli.main import run
from tests.support.harness.job_processes import cluster, records_of, write_dataset
from tests.support.servers import tiers

TEXT = tiers.answer_text


def answer_or_refuse(prompt: Any, composition: Any) -> str:
    """Answer as the fake model does, but refuse linear fusion as for adapters of unequal ranks."""
    if isinstance(composition, Fusion) and composition.method is FusionMethod.LINEAR:
        raise InvalidArgumentError("composition.fusion.method", "linear fusion needs equal ranks")
    return TEXT(prompt, composition)


async def test_one_command_prints_the_papers_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tiers, "answer_text", answer_or_refuse)
    with embedded_redis(tmp_path) as redis_url:
        async with cluster(tmp_path, redis_url) as running:
            await running.start_worker()
            files = [str(write_dataset(running.data, name, episodes=2)) for name in ("gmail", "ebay")]
            output = tmp_path / "matrix.json"
            words = [*files, "--top_k", "2", "--output", str(output), "--orchestrator-target", running.client.target]
            assert await asyncio.to_thread(run, ["evaluate", "matrix", *words]) == 0
            (job,) = await running.client.list()
            retrieved = len(running.tiers.retrieval.asked)
            compared = ["evaluate", "compare", job.evaluation_id, job.evaluation_id, "--strategy", "base", "--json"]
            words = ["--against", "mixture", "--metric", "exact_match", "--orchestrator-target", running.client.target]
            capsys.readouterr()
            assert await asyncio.to_thread(run, [*compared, *words]) == 0
            assert json.loads(capsys.readouterr().out)[0]["difference"]["count"] == 8
    questions = 2 * 2 * 2
    assert (job.done_samples, job.failed_samples) == (16 * questions, 2 * questions)
    assert len({record.sample.key for record in records_of(job.output_uri)}) == 16 * questions
    # Each question is retrieved for once in domain and once out of domain, for all strategies together.
    assert retrieved == 2 * questions
    rows = {row["strategy"]: row for row in json.loads(output.read_text())["rows"]}
    assert list(rows) == [
        "base", "oracle", "selection", "mixture", "fusion-linear", "fusion-concat", "fusion-svd", "uniform-all",
        "random-k",
    ]  # fmt: skip
    assert rows["fusion-linear"]["in_domain"]["steps"]["value"] is None
    assert "linear fusion needs equal ranks" in rows["fusion-linear"]["out_of_domain"]["reason"]
    assert rows["oracle"]["out_of_domain"] is None
    assert rows["mixture"]["out_of_domain"]["samples"] == questions
