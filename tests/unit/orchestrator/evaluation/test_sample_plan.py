"""Planning: canonical prompts, stable keys, and shards of one dataset each."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra.contract.composition import FusionMethod
from infra.contract.errors import InvalidArgumentError
from infra.contract.generation import Decoding
from infra.contract.retrieval import RetrievalOptions, Weighting
from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.evaluation import sample_plan
from orchestrator.evaluation.data.datasets import DatasetContent, read_datasets
from orchestrator.evaluation.records import Sample
from orchestrator.evaluation.sample_plan import choose_episodes, plan_samples, sample_chains, split_into_shards
from orchestrator.evaluation.spec import DatasetSpec, EvaluatedStrategy, EvaluationSpec, PromptProtocol
from tests.support.harness.evaluation_data import row, write_dataset

ACTIONS = ["Open App: Clock", 'Click on button with the text "Two\nlines"', "Check status: successful"]


def world(folder: Path, episodes: int = 3) -> tuple[DatasetSpec, ...]:
    for name in ("clock", "gmail"):
        rows = [
            row(f"{name}/{number}", f"Do {number}.", ACTIONS, [f"{name}{number}_{step}.png" for step in range(3)])
            for number in range(episodes)
        ]
        write_dataset(folder, name, rows)
    return tuple(DatasetSpec(name, str(folder / f"{name}.jsonl"), f"app_{name}", "app") for name in ("clock", "gmail"))


def planned(folder: Path, *strategies: AnswerStrategy, **options: Any) -> tuple[EvaluationSpec, list[Sample]]:
    spec = EvaluationSpec(world(folder), tuple(map(EvaluatedStrategy, strategies or [AnswerStrategy.BASE])), **options)
    contents = read_datasets(spec.datasets, protocol=spec.protocol, roots=[folder])
    return spec, plan_samples(spec, contents)


def test_step_prompt_has_screen_and_earlier_true_actions(tmp_path: Path) -> None:
    _, samples = planned(tmp_path)
    first, second, third = samples[:3]
    assert (first.text, first.truth, first.images) == ("Do 0.", ACTIONS[0], (tmp_path / "clock0_0.png",))
    assert (second.text, second.truth) == ("Do 0.\nActions so far:\nOpen App: Clock", ACTIONS[1])
    assert third.text == f"Do 0.\nActions so far:\n{ACTIONS[0]}\n{ACTIONS[1]}"
    assert third.images == (tmp_path / "clock0_2.png",)
    assert [(sample.step, sample.step_count) for sample in samples[:4]] == [(0, 3), (1, 3), (2, 3), (0, 3)]
    assert (first.adapter_id, first.kind, first.protocol) == ("app_clock", "app", PromptProtocol.STEP)


def test_sequence_prompt_has_all_screens(tmp_path: Path) -> None:
    _, samples = planned(tmp_path, protocol=PromptProtocol.SEQUENCE)
    assert len(samples) == 6
    assert samples[0].text == "Do 0."
    assert samples[0].truth == "\n".join(ACTIONS)
    assert samples[0].images == tuple(tmp_path / f"clock0_{step}.png" for step in range(3))
    assert (samples[0].step, samples[0].step_count) == (0, 3)


def test_episode_is_planned_without_history_and_in_one_shard(tmp_path: Path) -> None:
    _, samples = planned(tmp_path, AnswerStrategy.BASE, AnswerStrategy.MIXTURE, protocol=PromptProtocol.EPISODE)
    assert {sample.text for sample in samples} == {"Do 0.", "Do 1.", "Do 2."}
    assert [(sample.strategy.label, sample.step) for sample in samples[:6]] == [
        *(("base", step) for step in range(3)),
        *(("mixture", step) for step in range(3)),
    ]
    for size, lengths in ((2, [3] * 12), (7, [6] * 6), (100, [18, 18])):
        cut = split_into_shards(samples, size)
        assert [len(shard) for shard in cut] == lengths
        assert [sample for shard in cut for sample in shard] == samples
        assert all([sample.step for sample in steps] == [0, 1, 2] for shard in cut for steps in sample_chains(shard))


def test_strategies_of_same_question_are_adjacent(tmp_path: Path) -> None:
    _, samples = planned(tmp_path, AnswerStrategy.BASE, AnswerStrategy.MIXTURE, AnswerStrategy.FUSION)
    assert [sample.key for sample in samples[:4]] == [
        "base/clock/clock%2F0/0", "mixture/clock/clock%2F0/0", "fusion/clock/clock%2F0/0",
        "base/clock/clock%2F0/1",
    ]  # fmt: skip
    assert all(len(steps) == 1 for steps in sample_chains(samples))


def test_samples_have_sha256_of_images(tmp_path: Path) -> None:
    _, samples = planned(tmp_path)
    assert samples[0].image_sha256 == (hashlib.sha256(b"").hexdigest(),)


def test_rows_may_have_their_own_adapter(tmp_path: Path) -> None:
    rows = [{**row(str(n), "Do.", ["Scroll up"], ["a.png"]), "app": app} for n, app in enumerate(["Clock", "Gmail"])]
    rows.append({**rows[0], "episode_id": "2", "app": "Maps"})
    file = write_dataset(tmp_path, "mixed", [*rows, row("3", "Do.", ["Scroll up"], ["a.png"])])
    named = DatasetSpec("mixed", str(file), adapter_field="app", adapter_of=(("Clock", "app_clock"), ("Gmail", "mail")))
    spec = EvaluationSpec((named,), (EvaluatedStrategy(AnswerStrategy.ORACLE),))
    (content,) = read_datasets(spec.datasets, protocol=spec.protocol, roots=[tmp_path])
    assert [sample.adapter_id for sample in plan_samples(spec, [content])] == ["app_clock", "mail"]
    assert [(bad.line, bad.problem) for bad in content.bad_rows] == [
        (3, "app is 'Maps', which maps to no adapter; known values: Clock, Gmail"),
        (4, "app is missing"),
    ]
    (plain,) = read_datasets(
        [DatasetSpec("m", str(file), adapter_field="app")], protocol=PromptProtocol.STEP, roots=[tmp_path]
    )
    assert [episode.adapter_id for episode in plain.episodes] == ["Clock", "Gmail", "Maps"]


def test_keys_are_unique_stable_and_unambiguous(tmp_path: Path) -> None:
    _, samples = planned(tmp_path, AnswerStrategy.BASE, AnswerStrategy.FUSION)
    keys = [sample.key for sample in samples]
    assert len(set(keys)) == len(keys) == 2 * 2 * 3 * 3
    assert keys[2] == "base/clock/clock%2F0/1"
    assert keys[-1] == "fusion/gmail/gmail%2F2/2"


def test_episode_has_same_unique_cluster_in_every_dataset_and_strategy(tmp_path: Path) -> None:
    same, other = row("1", "Do.", ["Scroll up"], ["a.png"]), row("1", "Do not.", ["Scroll up"], ["a.png"])
    for name, fields in (("app", same), ("category", same), ("third", other)):
        write_dataset(tmp_path, name, [fields])
    spec = EvaluationSpec(
        tuple(DatasetSpec(name, str(tmp_path / f"{name}.jsonl")) for name in ("app", "category", "third")),
        (EvaluatedStrategy(AnswerStrategy.BASE),),
    )
    clusters = [
        sample.cluster
        for sample in plan_samples(spec, read_datasets(spec.datasets, protocol=spec.protocol, roots=[tmp_path]))
    ]
    assert clusters[0] == clusters[1] != clusters[2]


def test_every_strategy_answers_same_chosen_episodes(tmp_path: Path) -> None:
    _, samples = planned(tmp_path, AnswerStrategy.BASE, AnswerStrategy.MIXTURE, max_episodes=2, seed=5)
    chosen = {
        label: [sample.key.partition("/")[2] for sample in samples if sample.strategy.label == label]
        for label in ("base", "mixture")
    }
    assert chosen["base"] == chosen["mixture"]
    assert len(chosen["base"]) == 2 * 2 * 3


def test_episode_choice_depends_on_seed_and_smaller_choice_is_subset(tmp_path: Path) -> None:
    world(tmp_path, episodes=30)
    dataset = DatasetSpec("clock", str(tmp_path / "clock.jsonl"))
    (content,) = read_datasets([dataset], protocol=PromptProtocol.STEP, roots=[tmp_path])
    ten = choose_episodes(content.episodes, 10, seed=1)
    assert choose_episodes(content.episodes[::-1], 10, seed=1) == ten
    assert [episode.line for episode in ten] == sorted(episode.line for episode in ten)
    assert set(choose_episodes(content.episodes, 4, seed=1)) < set(ten)
    assert choose_episodes(content.episodes, 10, seed=2) != ten
    assert choose_episodes(content.episodes, None, seed=1) == list(content.episodes)


def test_shards_separate_datasets_and_keep_every_sample(tmp_path: Path) -> None:
    _, samples = planned(tmp_path, AnswerStrategy.BASE, AnswerStrategy.MIXTURE)
    cut = split_into_shards(samples, 4)
    assert [len(shard) for shard in cut] == [4, 4, 4, 4, 2] * 2
    assert all(len({sample.dataset for sample in shard}) == 1 for shard in cut)
    assert [sample for shard in cut for sample in shard] == samples
    with pytest.raises(InvalidArgumentError, match="shard_size"):
        split_into_shards(samples, 0)


def test_job_without_readable_row_is_refused_with_first_problem(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("\n{oops\n")
    spec = EvaluationSpec((DatasetSpec("bad", str(tmp_path / "bad.jsonl")),), (EvaluatedStrategy(AnswerStrategy.BASE),))
    contents = read_datasets(spec.datasets, protocol=spec.protocol, roots=[tmp_path])
    with pytest.raises(InvalidArgumentError, match=r"bad\.jsonl:2: not JSON"):
        plan_samples(spec, contents)
    empty = [DatasetContent(spec.datasets[0], tmp_path, "", (), ())]
    with pytest.raises(InvalidArgumentError, match="the files are empty"):
        plan_samples(spec, empty)


def test_job_with_too_many_samples_is_refused_with_number_and_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, samples = planned(tmp_path, AnswerStrategy.BASE, AnswerStrategy.MIXTURE, max_episodes=2)
    contents = read_datasets(spec.datasets, protocol=spec.protocol, roots=[tmp_path])
    assert len(plan_samples(spec, contents, max_samples=24)) == len(samples) == 24
    monkeypatch.setattr(sample_plan, "Sample", None)
    with pytest.raises(
        InvalidArgumentError, match=r"24 samples \(2 datasets, 4 episodes, 2 strategies\), more than"
    ) as e:
        plan_samples(spec, contents, max_samples=23)
    assert e.value.field == "datasets"
    for remedy in ("--num-samples", "fewer strategies", "max_samples"):
        assert remedy in e.value.description
    whole = replace(spec, protocol=PromptProtocol.SEQUENCE)
    with pytest.raises(InvalidArgumentError, match="would have 8 samples"):
        plan_samples(whole, contents, max_samples=7)


def test_job_with_too_much_text_is_refused(tmp_path: Path) -> None:
    actions = ["Scroll up " * 10] * 200
    write_dataset(tmp_path, "long", [row("1", "Do.", actions, ["a.png"] * 200)])
    spec = EvaluationSpec(
        (DatasetSpec("long", str(tmp_path / "long.jsonl")),), (EvaluatedStrategy(AnswerStrategy.BASE),)
    )
    contents = read_datasets(spec.datasets, protocol=spec.protocol, roots=[tmp_path])
    characters = sum(len(sample.text) + len(sample.truth) for sample in plan_samples(spec, contents))
    assert characters > 200 * 4_000
    with pytest.raises(InvalidArgumentError, match=r"200 samples of the job .* would have 2,0\d\d,\d\d\d characters"):
        plan_samples(spec, contents, max_samples=200)
    assert len(plan_samples(replace(spec, protocol=PromptProtocol.EPISODE), contents, max_samples=200)) == 200


def test_specs_and_samples_round_trip_through_json(tmp_path: Path) -> None:
    spec, samples = planned(
        tmp_path,
        *AnswerStrategy,
        retrieval=RetrievalOptions(top_k=2, exclude=("x",), weighting=Weighting.SOFTMAX, temperature=0.5),
        decoding=Decoding(max_new_tokens=7, stop=("\n",), seed=2**64 - 1),
        max_episodes=1,
    )
    assert EvaluationSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert [Sample.from_json(json.loads(json.dumps(sample.to_json()))) for sample in samples] == samples


DATASET = DatasetSpec("clock", "clock.jsonl", "app_clock")
BASE = EvaluatedStrategy(AnswerStrategy.BASE)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"datasets": ()}, "datasets: a job needs at least one dataset"),
        ({"strategies": ()}, "strategies: a job needs at least one strategy"),
        ({"datasets": (DATASET, DATASET)}, r"datasets\[1\].name: 'clock' is used twice"),
        ({"datasets": (DATASET,) * 1001}, "datasets: a job may have at most 1000, got 1001"),
        ({"strategies": (BASE,) * 65}, "strategies: a job may have at most 64, got 65"),
        ({"strategies": (BASE, BASE)}, r"strategies\[1\].name: 'base' is used twice"),
        ({"max_episodes": 0}, "max_episodes: must be at least 1"),
        ({"shard_size": 0}, r"shard_size: must be in \[1, 1000\], got 0"),
        ({"shard_size": 1001}, r"shard_size: must be in \[1, 1000\], got 1001"),
        ({"seed": -1}, "seed: must be in"),
        (
            {"datasets": (DatasetSpec("new", "new.jsonl"),), "strategies": (EvaluatedStrategy(AnswerStrategy.ORACLE),)},
            r"datasets\[0\].adapter_id: strategy 'oracle' needs the adapter trained for dataset 'new'",
        ),
    ],
)
def test_invalid_spec_is_refused(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidArgumentError, match=problem):
        EvaluationSpec(**{"datasets": (DATASET,), "strategies": (BASE,), **fields})


def test_invalid_names_and_strategies_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="is not a valid name"):
        DatasetSpec("a/b", "x.jsonl")
    with pytest.raises(InvalidArgumentError, match="has no file"):
        DatasetSpec("a", "")
    with pytest.raises(InvalidArgumentError, match="64 lower-case hexadecimal digits"):
        DatasetSpec("a", "x.jsonl", sha256="abc")
    with pytest.raises(InvalidArgumentError, match="already has adapter_id 'b'"):
        DatasetSpec("a", "x.jsonl", "b", adapter_field="app")
    with pytest.raises(InvalidArgumentError, match="base does not retrieve adapters"):
        EvaluatedStrategy(AnswerStrategy.BASE, exclude_own_adapter=True)


def test_strategy_labels_are_derived() -> None:
    labels = [
        EvaluatedStrategy(AnswerStrategy.SELECTION).label,
        EvaluatedStrategy(AnswerStrategy.FUSION, FusionMethod.CONCAT).label,
        EvaluatedStrategy(AnswerStrategy.MIXTURE, exclude_own_adapter=True).label,
        EvaluatedStrategy(AnswerStrategy.RANDOM_K, exclude_own_adapter=True).label,
        EvaluatedStrategy(AnswerStrategy.MIXTURE, name="mine").label,
    ]
    assert labels == ["selection", "fusion-concat", "mixture-out-of-domain", "random-k-out-of-domain", "mine"]
