"""EvaluationService over loopback gRPC on a real Redis; the tests do the work of the workers themselves."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from loraretriever.v1 import orchestrator_service_pb2 as pb
from loraretriever.v1 import orchestrator_service_pb2_grpc as pb_grpc
from prometheus_client import REGISTRY

from infra.contract.composition import FusionMethod
from infra.contract.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OverloadedError,
)
from infra.contract.generation import Decoding
from infra.contract.prompt import Prompt
from infra.contract.retrieval import RetrievalOptions, Weighting
from infra.runtime.embedded_redis import embedded_redis
from infra.runtime.server import GrpcServer
from infra.runtime.settings import ServerOptions
from orchestrator.answering.pipeline import Pipeline
from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.clients.evaluation import EvaluationClient
from orchestrator.clients.generation import GenerationClient
from orchestrator.clients.retrieval import RetrievalClient
from orchestrator.evaluation.data.files import file_sha256
from orchestrator.evaluation.job import EvaluationState
from orchestrator.evaluation.sample_plan import step_text
from orchestrator.evaluation.spec import DatasetSpec, EvaluatedStrategy, EvaluationSpec, PromptProtocol
from orchestrator.jobs.ledger.ledger import Ledger
from orchestrator.jobs.ledger.store import RedisStore
from orchestrator.jobs.ledger.types import LedgerLimits
from orchestrator.jobs.planning import JobOptions
from orchestrator.jobs.provenance import RunningSystem, System
from orchestrator.jobs.service import EvaluationJobs
from orchestrator.jobs.worker.isolation import Isolation
from orchestrator.jobs.worker.report_writer import ReportWriter
from orchestrator.jobs.worker.shard_lease import ShardLimits
from orchestrator.jobs.worker.shard_runner import Outcome, ShardRunner
from orchestrator.server import add_services
from tests.support.harness.evaluation_data import row
from tests.support.harness.job_ledger import RecordingDispatcher
from tests.support.harness.job_processes import records_of, write_dataset
from tests.support.servers.tiers import ADAPTERS, BASE_MODEL, RETRIEVAL_TIMINGS, FakeTiers, fake_tiers

STUB: Any = pb_grpc.EvaluationServiceStub


@dataclass(frozen=True)
class Served:
    """A service without workers; `work` does what workers would do."""

    client: EvaluationClient
    data: Path
    dispatcher: RecordingDispatcher
    ledger: Ledger
    shards: ShardRunner
    reports: ReportWriter
    tiers: FakeTiers

    async def work(self) -> None:
        """Do every unit that can be claimed, and what follows from it."""
        while (claim := await self.ledger.claim()) is not None:
            if claim.is_report:
                await self.reports.run(claim, asyncio.Event())
            else:
                await self.shards.run(claim, asyncio.Event())


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with embedded_redis(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
async def served(tmp_path: Path, redis_url: str) -> AsyncIterator[Served]:
    data = tmp_path / "data"
    data.mkdir()
    async with AsyncExitStack() as stack:
        tiers = await stack.enter_async_context(fake_tiers())
        retrieval = await stack.enter_async_context(RetrievalClient(tiers.retrieval_target))
        generation = await stack.enter_async_context(GenerationClient(tiers.generation_target))
        store = await stack.enter_async_context(RedisStore(redis_url))
        await store.redis.flushall()
        limits = LedgerLimits(first_pause_s=0.05)
        ledger, dispatcher, pipeline = Ledger(store, limits), RecordingDispatcher(), Pipeline(retrieval, generation)
        options = JobOptions((data,), str(tmp_path / "out"), shard_size=3)
        server = GrpcServer(ServerOptions(shutdown_grace_s=0))
        jobs = EvaluationJobs(ledger, dispatcher, options, System(generation, retrieval))
        add_services(server, pipeline, jobs, 20)
        await stack.enter_async_context(server)
        client = await stack.enter_async_context(EvaluationClient(server.address))
        isolation = Isolation()
        shards = ShardRunner(ledger, pipeline, [data], ShardLimits(concurrency=2), isolation)
        reports = ReportWriter(ledger, [], isolation)
        yield Served(client, data, dispatcher, ledger, shards, reports, tiers)


def spec_of(file: Path, **changes: Any) -> EvaluationSpec:
    spec = EvaluationSpec((DatasetSpec("gmail", str(file), "gmail"),), (EvaluatedStrategy(AnswerStrategy.MIXTURE),))
    return replace(spec, **changes)


def episode(episode_id: str, actions: list[str], images: list[str]) -> dict[str, Any]:
    return row(episode_id, f"Do {episode_id}.", actions, images)


def write_rows(file: Path, rows: list[dict[str, Any]]) -> Path:
    (file.parent / "screen.png").write_bytes(b"the fake model does not read images")
    file.write_text("".join(json.dumps(fields) + "\n" for fields in rows), encoding="utf-8")
    return file


def lines_of(output_uri: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(output_uri, "records.jsonl").read_text(encoding="utf-8").splitlines()]


async def test_created_job_is_queued_and_wakes_workers_for_its_shards(served: Served) -> None:
    file = write_dataset(served.data, "gmail", episodes=4, bad_rows=2)
    job = await served.client.create(spec_of(file))
    assert job.state is EvaluationState.QUEUED
    assert (job.total_samples, job.done_samples, job.bad_rows) == (8, 0, 2)
    assert job.end_time is None
    assert job.output_uri.endswith(job.evaluation_id)
    assert served.dispatcher.woken == [3]


async def test_repeated_create_without_request_id_starts_one_job(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = served.client.call

    async def call_twice(*arguments: Any) -> Any:
        await call(*arguments)
        return await call(*arguments)

    spec = spec_of(write_dataset(served.data, "gmail", episodes=1))
    with monkeypatch.context() as patched:
        patched.setattr(served.client, "call", call_twice)
        job = await served.client.create(spec)
    other = await served.client.create(spec)
    assert [listed.evaluation_id for listed in await served.client.list()] == [other.evaluation_id, job.evaluation_id]


async def test_spec_is_returned_as_sent(served: Served) -> None:
    file = write_dataset(served.data, "gmail", episodes=4)
    spec = EvaluationSpec(
        datasets=(
            DatasetSpec("mail", str(file), "gmail", "app", sha256=file_sha256(file)),
            DatasetSpec("again", str(file), "ebay", sha256=file_sha256(file)),
        ),
        strategies=(
            EvaluatedStrategy(AnswerStrategy.FUSION, FusionMethod.CONCAT, True, "hidden"),
            EvaluatedStrategy(AnswerStrategy.ORACLE),
        ),
        protocol=PromptProtocol.SEQUENCE,
        retrieval=RetrievalOptions(top_k=2, exclude=("clock",), weighting=Weighting.SOFTMAX, temperature=0.3),
        decoding=Decoding(max_new_tokens=12, seed=3, stop=("END",)),
        max_episodes=2,
        seed=2**63,
        shard_size=2,
        image_root=str(served.data),
        legacy_threshold=0.0,
        point_tolerance_px=0.0,
        first_episodes=True,
        max_images=12,
    )
    created = await served.client.create(spec)
    assert created.spec == spec
    assert (await served.client.get(created.evaluation_id)).spec == spec


async def test_default_strategy_and_protocol_are_mixture_and_step(served: Served) -> None:
    file = write_dataset(served.data, "gmail", episodes=1, steps=3)
    request = pb.CreateEvaluationRequest()
    request.spec.datasets.add(name="gmail", uri=str(file))
    request.spec.strategies.add()
    async with grpc.aio.insecure_channel(served.client.target) as channel:
        response = await STUB(channel).CreateEvaluation(request, timeout=20)
    assert response.evaluation.spec.strategies[0].strategy == pb.ANSWER_STRATEGY_MIXTURE
    assert response.evaluation.spec.protocol == pb.EVALUATION_PROTOCOL_STEP
    assert response.evaluation.total_samples == 3


async def test_same_request_id_and_spec_is_same_job(served: Served) -> None:
    spec = spec_of(write_dataset(served.data, "gmail", episodes=2))
    first, second = await asyncio.gather(served.client.create(spec, "run-1"), served.client.create(spec, "run-1"))
    third = await served.client.create(spec, "run-1")
    assert first.evaluation_id == second.evaluation_id == third.evaluation_id
    assert len(await served.client.list()) == 1


async def test_same_request_id_with_another_spec_is_refused(served: Served) -> None:
    spec = spec_of(write_dataset(served.data, "gmail", episodes=2))
    first = await served.client.create(spec, "run-1")
    with pytest.raises(AlreadyExistsError, match=f"run-1.*{first.evaluation_id}"):
        await served.client.create(replace(spec, seed=7), "run-1")


async def test_every_call_without_request_id_creates_new_job(served: Served) -> None:
    spec = spec_of(write_dataset(served.data, "gmail", episodes=2))
    jobs = [await served.client.create(spec) for _ in range(2)]
    assert [job.evaluation_id for job in await served.client.list()] == [job.evaluation_id for job in jobs[::-1]]


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"datasets": []}, "spec.datasets"),
        ({"strategies": []}, "spec.strategies"),
        ({"datasets": [{"name": "a", "uri": "x"}, {"name": "a", "uri": "y"}]}, "spec.datasets[1].name"),
        ({"datasets": [{"name": "a"}]}, "spec.datasets[0].uri"),
        ({"strategies": [{"strategy": 2}, {"strategy": 2}]}, "spec.strategies[1].name"),
        ({"strategies": [{"strategy": 99}]}, "spec.strategies[0].strategy"),
        ({"strategies": [{"strategy": 5}]}, "spec.datasets[0].adapter_id"),
        ({"decoding": {"top_p": 7.0}}, "spec.decoding.top_p"),
        ({"retrieval": {"temperature": -1.0}}, "spec.retrieval.temperature"),
        ({"max_episodes": -1}, "spec.max_episodes"),
        ({"image_root": "/"}, "spec.image_root"),
        ({"legacy_threshold": 2.0}, "spec.legacy_threshold"),
        ({"point_tolerance_px": -1.0}, "spec.point_tolerance_px"),
    ],
)
async def test_bad_spec_is_refused_by_field_path(served: Served, change: dict[str, Any], path: str) -> None:
    file = write_dataset(served.data, "gmail", episodes=1)
    fields = {"datasets": [{"name": "gmail", "uri": str(file)}], "strategies": [{"strategy": 1}], **change}
    async with grpc.aio.insecure_channel(served.client.target) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await STUB(channel).CreateEvaluation(pb.CreateEvaluationRequest(spec=fields), timeout=20)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (raised.value.details() or "").startswith(f"{path}: ")
    assert await served.client.list() == []


async def test_dataset_outside_roots_is_not_found(served: Served, tmp_path: Path) -> None:
    outside = write_dataset(tmp_path / "elsewhere", "gmail", episodes=1)
    with pytest.raises(NotFoundError, match=r"gmail.*dataset roots"):
        await served.client.create(spec_of(outside))


async def test_missing_dataset_is_named(served: Served) -> None:
    with pytest.raises(NotFoundError, match=r"no_such\.jsonl"):
        await served.client.create(spec_of(served.data / "no_such.jsonl"))


async def test_dataset_without_good_rows_is_refused_with_first_bad_line(served: Served) -> None:
    file = write_dataset(served.data, "gmail", episodes=0, bad_rows=2)
    with pytest.raises(InvalidArgumentError, match=r"gmail\.jsonl:1:"):
        await served.client.create(spec_of(file))


async def test_episode_steps_are_asked_in_order_with_models_own_answers(served: Served) -> None:
    file = write_dataset(served.data, "gmail", episodes=2, steps=3)
    created = await served.client.create(spec_of(file, protocol=PromptProtocol.EPISODE))
    await served.work()
    records = records_of(created.output_uri)
    assert len(records) == 6
    own: dict[str, list[str]] = {}
    for record in records:
        history = own.setdefault(record.sample.episode_id, [])
        assert record.sample.text == step_text(f"Use gmail for errand {int(record.sample.episode_id)}", history)
        history.append(record.answer or "")


async def test_failed_step_leaves_rest_of_episode_unscored(served: Served) -> None:
    file = write_dataset(served.data, "gmail", episodes=3, steps=3)
    created = await served.client.create(spec_of(file, protocol=PromptProtocol.EPISODE))
    calls = iter(range(1000))

    async def second_step_of_errand_1(prompt: Any, _peer: str) -> None:
        if "errand 1\nActions so far" in prompt.user_text:
            next(calls)
            raise InvalidArgumentError("prompt", "takes too many tokens")

    served.tiers.generation.before = second_step_of_errand_1
    await served.work()
    assert next(calls) == 1
    records = {(int(record.sample.episode_id), record.sample.step): record for record in records_of(created.output_uri)}
    assert [key for key, record in sorted(records.items()) if record.error is not None] == [(1, 1), (1, 2)]
    last = records[1, 2].error
    assert last is not None
    assert last.reason == "EARLIER_STEP_FAILED"
    assert "step 2 of this episode has no answer (INVALID_ARGUMENT)" in last.message
    summary = json.loads((await served.client.report(created.evaluation_id)).summary_json)
    cell = summary["groups"][0]
    assert (cell["samples"], cell["failed"]) == (9, 2)
    assert (cell["action"]["steps"]["count"], cell["action"]["episodes"]["count"]) == (7, 2)


async def test_interrupted_episode_continues_with_recorded_answers(served: Served) -> None:
    file = write_dataset(served.data, "gmail", episodes=1, steps=3)
    created = await served.client.create(spec_of(file, protocol=PromptProtocol.EPISODE))
    stopping = asyncio.Event()

    async def stop_after_the_first(prompt: Any, _peer: str) -> None:
        stopping.set()

    served.tiers.generation.before = stop_after_the_first
    claim = await served.ledger.claim()
    assert claim is not None
    assert await served.shards.run(claim, stopping) is Outcome.UNFINISHED
    assert served.tiers.generation.calls == 1
    await served.work()
    assert served.tiers.generation.calls == 3
    last = records_of(created.output_uri)[-1]
    assert len(last.sample.text.splitlines()) == 4


async def test_uniform_and_random_strategies_do_not_retrieve(served: Served) -> None:
    file = write_dataset(served.data, "gmail", episodes=3, steps=1)
    strategies = tuple(
        EvaluatedStrategy(strategy, exclude_own_adapter=hidden)
        for strategy in (AnswerStrategy.UNIFORM_ALL, AnswerStrategy.RANDOM_K)
        for hidden in (False, True)
    )
    spec = spec_of(file, strategies=strategies, retrieval=RetrievalOptions(top_k=2))
    jobs = [await served.client.create(spec) for _ in range(2)]
    await served.work()
    first, again = (records_of(job.output_uri) for job in jobs)
    assert [record.applied for record in first] == [record.applied for record in again]
    assert served.tiers.retrieval.asked == []
    applied: dict[str, list[dict[str, float]]] = {
        label: [] for label in ("uniform-all", "random-k", "uniform-all-out-of-domain", "random-k-out-of-domain")
    }
    for record in first:
        assert record.matches is None
        applied[record.sample.strategy.label].append({share.adapter_id: share.weight for share in record.applied})
    names = {adapter.adapter_id for adapter in ADAPTERS}
    assert applied["uniform-all"] == [dict.fromkeys(names, 0.25)] * 3
    assert applied["uniform-all-out-of-domain"] == [dict.fromkeys(names - {"gmail"}, 1 / 3)] * 3
    assert all(len(shares) == 2 and set(shares.values()) == {0.5} for shares in applied["random-k"])
    assert all("gmail" not in shares for shares in applied["random-k-out-of-domain"])
    assert len({frozenset(shares) for shares in applied["random-k"]}) > 1


async def test_strategies_with_same_retrieval_share_it(served: Served) -> None:
    file = write_dataset(served.data, "gmail", episodes=3, steps=2)
    retrieving = (AnswerStrategy.SELECTION, AnswerStrategy.MIXTURE, AnswerStrategy.FUSION)
    strategies = tuple(
        EvaluatedStrategy(strategy, exclude_own_adapter=hidden) for strategy in retrieving for hidden in (False, True)
    )
    created = await served.client.create(spec_of(file, strategies=strategies))
    await served.work()
    assert (await served.client.get(created.evaluation_id)).done_samples == 3 * 2 * 6
    assert len(served.tiers.retrieval.asked) == 3 * 2 * 2
    records = records_of(created.output_uri)
    for phase in ("retrieval_s", "embed_s", "search_s"):
        assert sum(getattr(record.timings, phase) is not None for record in records) == 12
    assert all(record.matches for record in records)


async def test_folders_and_patterns_become_hashed_datasets_per_file(served: Served) -> None:
    files = [write_dataset(served.data, name, episodes=1) for name in ("gmail", "ebay")]
    nested = write_dataset(served.data / "apps" / "clock", "test", episodes=1)
    base = (EvaluatedStrategy(AnswerStrategy.BASE),)
    created = await served.client.create(
        EvaluationSpec((DatasetSpec("", "*.jsonl", kind="app"), DatasetSpec("more", "apps/")), base)
    )
    assert [(dataset.name, dataset.uri, dataset.kind) for dataset in created.spec.datasets] == [
        ("ebay", str(files[1]), "app"), ("gmail", str(files[0]), "app"), ("more.clock", str(nested), ""),
    ]  # fmt: skip
    assert created.spec.datasets[0].sha256 == hashlib.sha256(files[1].read_bytes()).hexdigest()
    with pytest.raises(NotFoundError, match=r"no JSONL file matches 'none/\*\.jsonl'"):
        await served.client.create(EvaluationSpec((DatasetSpec("", "none/*.jsonl"),), base))


async def test_adapter_of_each_file_follows_template(served: Served) -> None:
    for name in ("gmail", "ebay"):
        write_dataset(served.data, name, episodes=1)
    oracle = (EvaluatedStrategy(AnswerStrategy.ORACLE),)
    created = await served.client.create(EvaluationSpec((DatasetSpec("", "*.jsonl", "{}"),), oracle))
    assert [dataset.adapter_id for dataset in created.spec.datasets] == ["ebay", "gmail"]
    await served.work()
    assert [record.applied[0].adapter_id for record in records_of(created.output_uri)] == ["ebay"] * 2 + ["gmail"] * 2


async def test_job_is_not_repeated_on_changed_data(served: Served) -> None:
    file = write_dataset(served.data, "gmail", episodes=2)
    created = await served.client.create(spec_of(file))
    assert (await served.client.create(created.spec)).spec == created.spec
    write_dataset(served.data, "gmail", episodes=3)
    with pytest.raises(FailedPreconditionError, match=r"gmail\.jsonl has changed: its SHA-256 is"):
        await served.client.create(created.spec)


@pytest.mark.parametrize("method", ["get", "cancel", "report"])
async def test_unknown_job_is_not_found(served: Served, method: str) -> None:
    with pytest.raises(NotFoundError, match="nightly-9"):
        await getattr(served.client, method)("nightly-9")
    with pytest.raises(NotFoundError, match="nightly-9"):
        await anext(served.client.watch("nightly-9"))


async def test_jobs_are_listed_newest_first_by_page(served: Served) -> None:
    spec = spec_of(write_dataset(served.data, "gmail", episodes=1))
    created = [(await served.client.create(spec)).evaluation_id for _ in range(3)]
    first = await served.client.page(page_size=2)
    second = await served.client.page(page_size=2, page_token=first.next_page_token)
    assert [job.evaluation_id for job in (*first.evaluations, *second.evaluations)] == created[::-1]
    assert second.next_page_token == ""
    with pytest.raises(InvalidArgumentError, match="page_token"):
        await served.client.page(page_token="tomorrow")


async def test_watch_sends_job_at_once_and_until_it_ends(served: Served) -> None:
    created = await served.client.create(spec_of(write_dataset(served.data, "gmail", episodes=4)))
    watched = served.client.watch(created.evaluation_id)
    assert (await anext(watched)).state is EvaluationState.QUEUED
    await served.work()
    states = [job async for job in watched]
    assert states[-1].state is EvaluationState.SUCCEEDED
    assert states[-1].done_samples == 8
    assert states[-1].end_time is not None


async def test_report_of_ended_job_is_complete(served: Served) -> None:
    created = await served.client.create(spec_of(write_dataset(served.data, "gmail", episodes=4, bad_rows=1)))
    await served.work()
    report = await served.client.report(created.evaluation_id)
    summary = json.loads(report.summary_json)
    assert summary["recorded_samples"] == 8
    assert summary["bad_row_count"] == 1
    assert summary["facts"]["base_model"] == BASE_MODEL
    assert summary["facts"]["evaluation_id"] == created.evaluation_id
    assert report.summary_markdown.startswith("#")
    page = Path(report.output_uri, "report.html").read_text(encoding="utf-8")
    assert created.evaluation_id in page
    assert page.count("mixture") > 1
    assert sorted(record.sample.key for record in records_of(report.output_uri)) == sorted(
        f"mixture/gmail/{episode:06d}/{step}" for episode in range(4) for step in range(2)
    )


async def test_records_hold_matches_applied_adapters_and_timings(served: Served) -> None:
    file = write_dataset(served.data, "gmail", episodes=1, steps=1)
    strategies = (
        EvaluatedStrategy(AnswerStrategy.MIXTURE),
        EvaluatedStrategy(AnswerStrategy.BASE),
        EvaluatedStrategy(AnswerStrategy.SELECTION, exclude_own_adapter=True),
    )
    created = await served.client.create(spec_of(file, strategies=strategies, retrieval=RetrievalOptions(top_k=2)))
    await served.work()
    records = {record.sample.strategy.label: record for record in records_of(created.output_uri)}
    mixture, base, hidden = (records[label] for label in ("mixture", "base", "selection-out-of-domain"))
    assert mixture.matches is not None
    assert [match.adapter_id for match in mixture.matches][:1] == ["gmail"]
    assert len(mixture.matches) == len(mixture.applied) == 2
    assert mixture.catalogue_revision == "catalogue-1"
    assert mixture.timings is not None
    assert mixture.timings.decode_s == pytest.approx(0.003)
    assert mixture.timings.retrieval_s is not None
    assert mixture.timings.embed_s == pytest.approx(RETRIEVAL_TIMINGS.embed_s)
    assert mixture.timings.search_s == pytest.approx(RETRIEVAL_TIMINGS.search_s)
    assert base.timings is not None
    assert (base.timings.retrieval_s, base.timings.embed_s, base.timings.search_s) == (None, None, None)
    assert not mixture.catalogue_stale
    assert base.matches is None
    assert base.applied == ()
    assert hidden.matches is not None
    assert "gmail" not in [match.adapter_id for match in hidden.matches]
    assert [share.weight for share in hidden.applied] == [1.0]


async def test_record_lines_hold_scores(served: Served) -> None:
    actions = ["Scroll up", 'Click on button with the text "Mail"']
    write_rows(served.data / "clock.jsonl", [episode("e1", actions[:1], ["screen.png"])])
    created = await served.client.create(spec_of(served.data / "clock.jsonl"))
    served.tiers.generation.failures["Step twice"] = InvalidArgumentError("prompt", "too long")
    write_rows(served.data / "more.jsonl", [episode("Step twice", actions, ["screen.png"] * 2)])
    failing = await served.client.create(spec_of(served.data / "more.jsonl"))
    await served.work()
    (line,) = lines_of(created.output_uri)
    assert line["scores"] == {"action": [False], "action_type": [False], "legacy": [False]}
    assert [line["scores"] for line in lines_of(failing.output_uri)] == [None, None]


async def test_rows_without_screens_are_asked_whole_and_scored_as_text(served: Served) -> None:
    rows = [episode("e1", ["The capital is Paris."], []), episode("e2", ["It rains.", "Take an umbrella."], [])]
    file = write_rows(served.data / "facts.jsonl", rows)
    created = await served.client.create(spec_of(file, protocol=PromptProtocol.SEQUENCE))
    assert (created.total_samples, created.bad_rows) == (2, 0)
    await served.work()
    first, second = records_of(created.output_uri)
    assert (first.sample.images, first.sample.truth) == ((), "The capital is Paris.")
    assert second.sample.truth == "It rains.\nTake an umbrella."
    assert (first.answer or "").endswith(" saw 0: Do e1.")
    scores = [line["scores"] for line in lines_of(created.output_uri)]
    assert all(set(score) == {"exact_match", "rouge_l", "bleu"} and score["exact_match"] == 0 for score in scores)
    report = await served.client.report(created.evaluation_id)
    (cell,) = json.loads(report.summary_json)["groups"]
    assert {name: estimate["count"] for name, estimate in cell["texts"].items()} == {
        "exact_match": 2, "rouge_l": 2, "bleu": 2,
    }  # fmt: skip
    assert "## Whole answers, %" in report.summary_markdown
    assert "Whole answers, %" in Path(report.output_uri, "report.html").read_text(encoding="utf-8")


async def test_row_without_screens_is_one_whole_answer_under_step_protocol(served: Served) -> None:
    file = write_rows(served.data / "facts.jsonl", [episode("e1", ["The capital is Paris.", "It is large."], [])])
    created = await served.client.create(spec_of(file))
    await served.work()
    (record,) = records_of(created.output_uri)
    assert record.sample.truth == "The capital is Paris.\nIt is large."


async def test_report_states_system_that_ran_at_creation(served: Served) -> None:
    created = await served.client.create(spec_of(write_dataset(served.data, "gmail", episodes=1)))
    await served.work()
    report = await served.client.report(created.evaluation_id)
    facts = json.loads(report.summary_json)["facts"]
    assert {name: facts[name] for name in asdict(RunningSystem())} == {
        "base_model": BASE_MODEL,
        "base_model_revision": "weights-1",
        "dtype": "float32",
        "catalogue_revision": "catalogue-1",
        "embedder": "embedder-1",
    }
    assert facts["version"] == version("loraretriever")
    assert "- digest of its files: weights-1" in report.summary_markdown
    assert "The catalogue of adapters changed" not in report.summary_markdown


async def test_job_is_accepted_while_tier_is_away(served: Served) -> None:
    served.tiers.retrieval.failure = NotFoundError("away")
    created = await served.client.create(spec_of(write_dataset(served.data, "gmail", episodes=1)))
    served.tiers.retrieval.failure = None
    await served.work()
    report = await served.client.report(created.evaluation_id)
    summary = json.loads(report.summary_json)
    facts = summary["facts"]
    assert (facts["base_model"], facts["catalogue_revision"], facts["embedder"]) == (BASE_MODEL, "", "")
    assert summary["catalogue_revisions"] == ["catalogue-1"]
    assert "The catalogue of adapters changed" not in report.summary_markdown


async def test_stale_or_changed_catalogue_is_caveat(served: Served) -> None:
    created = await served.client.create(spec_of(write_dataset(served.data, "gmail", episodes=2, steps=1)))
    served.tiers.retrieval.stale, served.tiers.retrieval.catalogue_revision = True, "catalogue-2"
    await served.work()
    assert all(record.catalogue_stale for record in records_of(created.output_uri))
    report = await served.client.report(created.evaluation_id)
    assert json.loads(report.summary_json)["stale_samples"] == 2
    page = Path(report.output_uri, "report.html").read_text(encoding="utf-8")
    for caveat in (
        "The catalogue of adapters changed while the job ran",
        "For 2 samples the catalogue was unreachable",
    ):
        assert caveat in report.summary_markdown
        assert caveat in page


async def test_scoring_options_of_spec_are_used(served: Served) -> None:
    spec = spec_of(write_dataset(served.data, "gmail", episodes=1), legacy_threshold=0.25, point_tolerance_px=7.5)
    created = await served.client.create(spec)
    await served.work()
    report = await served.client.report(created.evaluation_id)
    assert json.loads(report.summary_json)["scoring"] == {"legacy_threshold": 0.25, "point_tolerance_px": 7.5}
    assert "points may differ by 7.5 pixels" in " ".join(report.summary_markdown.split())


async def test_report_before_end_is_refused_with_progress(served: Served) -> None:
    created = await served.client.create(spec_of(write_dataset(served.data, "gmail", episodes=4)))
    with pytest.raises(FailedPreconditionError, match="0 of 8"):
        await served.client.report(created.evaluation_id)


async def test_job_cancelled_before_any_sample_ends_at_once(served: Served) -> None:
    created = await served.client.create(spec_of(write_dataset(served.data, "gmail", episodes=4)))
    job = await served.client.cancel(created.evaluation_id)
    assert job.state is EvaluationState.CANCELLED
    assert job.end_time is not None
    await served.work()
    assert await served.client.get(created.evaluation_id) == job
    with pytest.raises(FailedPreconditionError, match="before any sample"):
        await served.client.report(created.evaluation_id)


async def test_cancelling_ended_job_changes_nothing(served: Served) -> None:
    created = await served.client.create(spec_of(write_dataset(served.data, "gmail", episodes=1)))
    await served.work()
    job = await served.client.cancel(created.evaluation_id)
    assert job.state is EvaluationState.SUCCEEDED


async def test_missing_image_fails_only_its_samples(served: Served) -> None:
    file = write_dataset(served.data, "gmail", episodes=2, steps=1)
    other = write_dataset(served.data / "other", "ebay", episodes=2, steps=1)
    spec = spec_of(file, datasets=(DatasetSpec("gmail", str(file)), DatasetSpec("ebay", str(other))))
    created = await served.client.create(spec)
    (served.data / "other" / "screen.png").unlink()
    await served.work()
    job = await served.client.get(created.evaluation_id)
    assert (job.state, job.done_samples, job.failed_samples) == (EvaluationState.SUCCEEDED, 4, 2)
    failed = [record for record in records_of(job.output_uri) if record.error is not None]
    assert {record.sample.dataset for record in failed} == {"ebay"}
    assert all(record.error is not None and "screen.png" in record.error.message for record in failed)


async def test_changed_dataset_is_reported_and_answered_as_planned(served: Served) -> None:
    file = write_dataset(served.data, "gmail", episodes=2, steps=1)
    other = write_dataset(served.data, "ebay", episodes=2, steps=1)
    created = await served.client.create(
        spec_of(file, datasets=(DatasetSpec("gmail", str(file)), DatasetSpec("ebay", str(other))))
    )
    write_dataset(served.data, "gmail", episodes=3, steps=1)
    await served.work()
    report = await served.client.report(created.evaluation_id)
    assert json.loads(report.summary_json)["changed_datasets"] == ["gmail"]
    records = records_of(created.output_uri)
    assert len(records) == 4
    assert all(record.dataset_changed == (record.sample.dataset == "gmail") for record in records)
    assert all(record.error is None for record in records)


async def test_image_changed_after_planning_fails_its_sample(served: Served) -> None:
    file = write_dataset(served.data, "gmail", episodes=1, steps=1)
    created = await served.client.create(spec_of(file))
    (served.data / "screen.png").write_bytes(b"another screen")
    await served.work()
    (record,) = records_of(created.output_uri)
    assert record.error is not None
    assert "screen.png has changed since the job was planned" in record.error.message


async def test_recorded_samples_are_counted_by_outcome(served: Served) -> None:
    def counted(outcome: str) -> float:
        return REGISTRY.get_sample_value("loraretriever_evaluation_samples_total", {"outcome": outcome}) or 0

    before = counted("answered"), counted("failed")
    file = write_dataset(served.data, "gmail", episodes=3, steps=1)
    await served.client.create(spec_of(file))
    (served.data / "screen.png").unlink()
    await served.work()
    assert (counted("answered"), counted("failed")) == (before[0], before[1] + 3)


async def test_refused_samples_are_tried_again_concurrently(
    served: Served,
) -> None:
    def retried() -> float:
        labels = {"reason": "QUEUE_FULL"}
        return REGISTRY.get_sample_value("loraretriever_evaluation_samples_retried_total", labels) or 0

    refused: set[str] = set()
    under_way = most = 0

    async def full_at_first(prompt: Prompt, _peer: str) -> None:
        nonlocal under_way, most
        if prompt.user_text not in refused:
            refused.add(prompt.user_text)
            raise OverloadedError("the queue is full")
        under_way += 1
        most = max(most, under_way)
        async with asyncio.timeout(5):
            while most < 2:
                await asyncio.sleep(0.01)
        under_way -= 1

    before = retried()
    served.tiers.generation.before = full_at_first
    created = await served.client.create(spec_of(write_dataset(served.data, "gmail", episodes=6, steps=1)))
    await served.work()
    job = await served.client.get(created.evaluation_id)
    assert (job.done_samples, job.failed_samples, most) == (6, 0, 2)
    assert retried() == before + 6


async def test_report_is_tried_again_until_it_can_be_stored(served: Served, tmp_path: Path) -> None:
    blocked = tmp_path / "out"
    blocked.write_text("a file where the folder should be")
    created = await served.client.create(spec_of(write_dataset(served.data, "gmail", episodes=1)))
    await served.work()
    waiting = await served.client.get(created.evaluation_id)
    assert waiting.state is EvaluationState.RUNNING
    assert "the report could not be stored and is tried again" in waiting.stalled
    blocked.unlink()
    async with asyncio.timeout(10):
        while not (await served.client.get(created.evaluation_id)).state.ended:
            await served.work()
            await asyncio.sleep(0.02)
    job = await served.client.get(created.evaluation_id)
    assert (job.state, job.stalled) == (EvaluationState.SUCCEEDED, "")
    assert len(records_of(job.output_uri)) == 2


async def test_failed_report_is_retried_once_cause_is_gone(served: Served, tmp_path: Path) -> None:
    served.ledger.limits = LedgerLimits(report_patience_s=0)
    blocked = tmp_path / "out"
    blocked.write_text("a file where the folder should be")
    created = await served.client.create(spec_of(write_dataset(served.data, "gmail", episodes=1)))
    with pytest.raises(FailedPreconditionError, match="only one whose report failed"):
        await served.client.retry(created.evaluation_id)
    await served.work()
    job = await served.client.get(created.evaluation_id)
    assert job.state is EvaluationState.FAILED
    assert "could not be written" in job.error
    with pytest.raises(FailedPreconditionError, match="retry it once the cause is fixed"):
        await served.client.report(created.evaluation_id)
    blocked.unlink()
    assert (await served.client.retry(created.evaluation_id)).state is EvaluationState.RUNNING
    await served.work()
    assert (await served.client.report(created.evaluation_id)).summary_json
    assert len(records_of(job.output_uri)) == 2


async def test_deleted_job_is_not_found_and_its_files_stay(served: Served) -> None:
    created = await served.client.create(spec_of(write_dataset(served.data, "gmail", episodes=1)))
    with pytest.raises(FailedPreconditionError, match="cancel it first"):
        await served.client.delete(created.evaluation_id)
    await served.work()
    await served.client.delete(created.evaluation_id)
    assert await served.client.list() == []
    with pytest.raises(NotFoundError):
        await served.client.get(created.evaluation_id)
    assert len(records_of(created.output_uri)) == 2


async def test_request_id_returns_its_job_after_data_changed(served: Served) -> None:
    file = write_dataset(served.data, "gmail", episodes=1)
    spec = spec_of(file)
    created = await served.client.create(spec, "nightly")
    write_dataset(served.data, "gmail", episodes=2)
    assert (await served.client.create(spec, "nightly")).evaluation_id == created.evaluation_id
    file.unlink()
    assert (await served.client.create(spec, "nightly")).evaluation_id == created.evaluation_id


async def test_true_adapter_missing_in_catalogue_is_refused(served: Served) -> None:
    file = write_dataset(served.data, "gmail", episodes=1)
    named = (DatasetSpec("gmail", str(file), "gmial"),)
    with pytest.raises(FailedPreconditionError, match=r"no adapter 'gmial'.*dataset 'gmail'"):
        await served.client.create(spec_of(file, datasets=named))
    assert await served.client.list() == []


async def test_long_specs_make_short_pages(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.jobs.ledger.job_store.MAX_PAGE_CHARACTERS", 1000)
    spec = spec_of(write_dataset(served.data, "gmail", episodes=1))
    created = [(await served.client.create(spec)).evaluation_id for _ in range(4)]
    first = await served.client.page()
    assert 0 < len(first.evaluations) < 4
    assert [job.evaluation_id for job in await served.client.list()] == created[::-1]


async def test_job_beyond_limit_of_active_jobs_is_refused(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.jobs.service.MAX_ACTIVE_JOBS", 1)
    spec = spec_of(write_dataset(served.data, "gmail", episodes=1))
    created = await served.client.create(spec, "first")
    with pytest.raises(OverloadedError, match="at most 1 may run"):
        await served.client.create(spec)
    assert (await served.client.create(spec, "first")).evaluation_id == created.evaluation_id
