"""`loraretriever adapters ...` against a real retrieval service: add, import, export, list, show, remove."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loraretriever.v1 import retrieval_service_pb2 as pb

from infra.contract.errors import CheckpointError
from infra.contract.prompt import Prompt
from infra.runtime.wire import prompt_to_proto
from orchestrator.cli.commands.adapters import complete_adapters
from orchestrator.cli.main import run
from orchestrator.registration.safetensors_header import AdaptedLayers, read_layers
from tests.support.checkpoints.peft_adapters import TinyAdapter
from tests.support.harness.dataset_files import write_episodes
from tests.support.servers.retrieval_server import DIM, Service, WordEmbedder, retrieval_service

Output = Callable[[], Any]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with retrieval_service(tmp_path / "qdrant") as running:
        yield running


@pytest.fixture
def adapters(service: Service, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Return a function that runs `adapters ARGUMENTS --json` and returns its status, output and errors."""

    def call(*arguments: str) -> tuple[int, Any, str]:
        status = run(["adapters", *arguments, "--json", "--retrieval-target", service.address])
        printed = capsys.readouterr()
        return status, json.loads(printed.out) if printed.out else None, printed.err

    return call


def checkpoint(folder: Path, **config: Any) -> Path:
    """Write a PEFT folder with ranks 4 (q_proj) and 12 (v_proj)."""
    tiny = TinyAdapter.random(
        {"model.layers.0.self_attn.q_proj": (8, 8), "model.layers.1.self_attn.q_proj": (8, 8)},
        base_model_name_or_path="/models/tiny-vlm",
        **config,
    )
    wide = TinyAdapter.random({"model.layers.0.self_attn.v_proj": (16, 8)}, rank=12)
    tiny.tensors |= wide.tensors
    return tiny.write(folder)


def test_add_reads_checkpoint_and_embeds_examples_of_seed(
    adapters: Callable[..., Any], service: Service, tmp_path: Path
) -> None:
    folder, data = checkpoint(tmp_path / "gmail"), write_episodes(tmp_path / "data", episodes=5, steps=3)
    arguments = ("--checkpoint", str(folder), "--examples", str(data), "--kind", "app", "--tag", "x", "--tag", "y")
    status, stored, _ = adapters("add", "gmail", *arguments, "--count", "6")
    assert status == 0
    assert service.embedder.embedded == 6
    assert (stored["base_model"], stored["rank"], stored["targets"]) == ("tiny-vlm", 12, ["q_proj", "v_proj"])
    assert (stored["kind"], stored["tags"], stored["example_count"]) == ("app", ["x", "y"], 6)
    assert adapters("show", "gmail")[1] == stored
    assert adapters("list", "--kind", "app")[1] == [stored]
    assert adapters("list", "--kind", "category")[1] == []
    request = pb.RetrieveAdaptersRequest(prompts=[prompt_to_proto(Prompt.of("Send letter 1."))])
    found = service.stub.RetrieveAdapters(request).selections[0].matches
    assert [match.adapter.adapter_id for match in found] == ["gmail"]


def test_existing_id_is_refused_unless_replaced(adapters: Callable[..., Any], tmp_path: Path) -> None:
    first, second = checkpoint(tmp_path / "first"), checkpoint(tmp_path / "second")
    np.save(tmp_path / "mean.npy", np.ones(DIM, np.float32))
    rest = ("--vectors", str(tmp_path / "mean.npy"))
    before = adapters("add", "one", "--checkpoint", str(first), *rest)[1]
    status, _, error = adapters("add", "one", "--checkpoint", str(second), *rest)
    assert status == 1
    assert "'one' exists already, taken by another checkpoint" in error
    assert str(first) in error
    status, after, _ = adapters("add", "one", "--checkpoint", str(second), *rest, "--replace", "--kind", "app")
    assert (status, after["checkpoint_uri"], after["kind"]) == (0, str(second), "app")
    assert after["revision"] != before["revision"]
    assert [adapter["adapter_id"] for adapter in adapters("list")[1]] == ["one"]


def test_folder_of_adapters_is_registered_and_failures_are_reported(
    adapters: Callable[..., Any], service: Service, tmp_path: Path
) -> None:
    for name in ("clock", "gmail", "maps", "notes", "torn", "twins"):
        checkpoint(tmp_path / "loras" / name)
    (tmp_path / "loras/torn/adapter_model.safetensors").write_bytes(b"torn")
    (tmp_path / "loras/not an adapter").mkdir()
    data = tmp_path / "data"
    for file in (
        "clock/train.jsonl",
        "gmail.jsonl",
        "maps_train.jsonl",
        "torn.jsonl",
        "twins/a.jsonl",
        "twins/b.jsonl",
    ):
        written = write_episodes(data / file.replace("/", "-").removesuffix(".jsonl"), episodes=3, steps=2)
        (data / file).parent.mkdir(exist_ok=True)
        written.rename(data / file)
        shutil.copytree(written.parent, (data / file).parent, dirs_exist_ok=True)
    status, printed, errors = adapters("add", str(tmp_path / "loras"), "--examples", str(data), "--kind", "app")
    assert status == 1
    assert [adapter["adapter_id"] for adapter in printed["registered"]] == ["clock", "gmail", "maps"]
    assert {adapter["kind"] for adapter in printed["registered"]} == {"app"}
    assert {adapter["example_count"] for adapter in printed["registered"]} == {6}
    problems = {failure["name"]: failure["problem"] for failure in printed["failed"]}
    assert set(problems) == {"notes", "torn", "twins"}
    assert "no training data" in problems["notes"]
    assert "not a complete safetensors file" in problems["torn"]
    assert "2 data files" in problems["twins"]
    assert "notes: no training data" in " ".join(errors.split())
    status, printed, _ = adapters("add", str(tmp_path / "loras/clock"), "--examples", str(data / "gmail.jsonl"))
    assert (status, printed["registered"]) == (1, [])
    assert "exists already" in printed["failed"][0]["problem"]
    again = ("add", str(tmp_path / "loras/clock"), "--examples", str(data / "gmail.jsonl"), "--replace")
    assert adapters(*again)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nosuch", "--examples", "data"], "--checkpoint: is missing; give the PEFT folder of adapter 'nosuch'"),
        (["empty", "--examples", "data"], "holds an adapter_config.json; give a PEFT folder"),
        (["deep", "--examples", "data"], "deep/lora/checkpoint-1 does; give the folder above"),
        (["loras", "--examples", "nosuch"], "--examples: nosuch does not exist"),
        (["loras", "--examples", "data/one.jsonl"], "is one file for 2 adapters"),
        (["loras", "--vectors", "mean.npy"], "--vectors: holds the vectors of one adapter"),
    ],
)
def test_folder_without_adapters_or_data_is_refused(
    adapters: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("loras/a", "loras/b", "deep/lora/checkpoint-1"):
        checkpoint(tmp_path / folder)
    for folder in ("empty", "data"):
        (tmp_path / folder).mkdir()
    (tmp_path / "data/one.jsonl").touch()
    status, _, error = adapters("add", *arguments)
    assert status == 2
    assert message in " ".join(error.split())


def test_update_changes_what_is_named_and_embeds_only_new_examples(
    adapters: Callable[..., Any], service: Service, tmp_path: Path
) -> None:
    data = write_episodes(tmp_path / "data", episodes=3, steps=2)
    first, second = checkpoint(tmp_path / "first"), checkpoint(tmp_path / "second", r=4)
    before = adapters("add", "one", "--checkpoint", str(first), "--examples", str(data), "--kind", "app")[1]
    embedded = service.embedder.embedded
    status, after, _ = adapters("update", "one", "--description", "reads mail", "--tag", "x")
    assert (status, after["description"], after["tags"], after["kind"]) == (0, "reads mail", ["x"], "app")
    assert after["revision"] != before["revision"]
    assert service.embedder.embedded == embedded
    moved = adapters("update", "one", "--checkpoint", str(second), "--kind", "")[1]
    assert (moved["checkpoint_uri"], moved["kind"], moved["description"]) == (str(second), "", "reads mail")
    assert service.embedder.embedded == embedded
    again = adapters("update", "one", "--examples", str(data), "--count", "2")[1]
    assert again["example_count"] == 2
    assert service.embedder.embedded == embedded + 2
    status, _, error = adapters("update", "one")
    assert status == 2
    assert "nothing to change" in error
    assert adapters("update", "two", "--kind", "app")[0] == 1


def legacy(folder: Path, name: str, vectors: Any, **entry: Any) -> dict[str, Any]:
    """Return an entry of the study's config, with its files below `folder`."""
    checkpoint(folder / "loras" / name)
    np.save(folder / f"{name}_jina_v4_emb.mean.npy", vectors)
    return {
        "lora_name": name,
        "lora_path": f"loras/{name}",
        "embedding_path": f"./{name}_jina_v4_emb.mean.npy",
        "description": f"adapter of {name}",
    } | entry


def test_config_of_study_is_imported_and_bad_entries_are_reported(adapters: Callable[..., Any], tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    entries = [
        legacy(tmp_path, "app_lora_adidas", generator.normal(size=DIM)),
        legacy(tmp_path, "category_lora_lives", generator.normal(size=(3, DIM)).astype(np.float32)),
        legacy(tmp_path, "app_lora_short", np.ones(DIM - 1)),
        legacy(tmp_path, "app_lora_nan", np.full(DIM, np.nan)),
        legacy(tmp_path, "app_lora_words", np.array(["a"])),
        legacy(tmp_path, "app_lora_lost", np.ones(DIM), embedding_path="gone.npy"),
        legacy(tmp_path, "app_lora_nowhere", np.ones(DIM), lora_path="/no/such/folder"),
        legacy(tmp_path, "not an id", np.ones(DIM)),
        {"lora_name": "app_lora_bare"},
        "words",
        legacy(tmp_path, "app_lora_adidas", np.ones(DIM)),
    ]
    config = tmp_path / "app_loras_config_internvl2.json"
    config.write_text(json.dumps(entries), encoding="utf-8")
    status, printed, errors = adapters("import", str(config))
    assert status == 1
    registered = {adapter["adapter_id"]: adapter for adapter in printed["registered"]}
    assert set(registered) == {"app_lora_adidas", "category_lora_lives"}
    assert registered["app_lora_adidas"]["kind"] == "app"
    assert registered["app_lora_adidas"]["description"] == "adapter of app_lora_adidas"
    lives = registered["category_lora_lives"]
    assert (lives["kind"], lives["example_count"], lives["rank"]) == ("category", 3, 12)
    assert [failure["index"] for failure in printed["failed"]] == list(range(2, 11))
    problems = [
        "15 dimensions",
        "NaN",
        "not a .npy file|has",
        "gone.npy",
        "not a folder on this machine",
        "not an adapter id",
    ]
    for problem, failed in zip(
        [*problems, "is missing", "not an object", "exists already"], printed["failed"], strict=True
    ):
        assert any(part in failed["problem"] for part in problem.split("|")), (problem, failed)
        assert f"{config}[{failed['index']}]" in errors
    config.write_text(json.dumps(entries[:2]), encoding="utf-8")
    assert adapters("import", str(config), "--replace")[0] == 0


@pytest.mark.parametrize("content", ["{", '{"lora_name": "x"}', None])
def test_file_that_is_not_a_config_is_refused(
    adapters: Callable[..., Any], tmp_path: Path, content: str | None
) -> None:
    config = tmp_path / "config.json"
    if content is not None:
        config.write_text(content)
    status, _, error = adapters("import", str(config))
    assert status == 2
    assert str(config) in error


def test_export_is_imported_into_another_catalogue(
    adapters: Callable[..., Any], service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_episodes(tmp_path / "data", episodes=3, steps=2)
    for name in ("one", "two"):
        rest = ("--examples", str(data), "--kind", "app", "--tag", name, "--description", "d", "--display-name", "D")
        assert adapters("add", name, "--checkpoint", str(checkpoint(tmp_path / name)), *rest)[0] == 0
    assert adapters("export", str(tmp_path / "export.json"))[1]["exported"] == ["one", "two"]
    with retrieval_service(tmp_path / "other") as other:
        assert run(["adapters", "import", str(tmp_path / "export.json"), "--retrieval-target", other.address]) == 0
        assert "registered 2 of 2 adapters" in capsys.readouterr().out
        for name in ("one", "two"):
            mine, theirs = (server.catalogue.look_up(name, with_vectors=True) for server in (service, other))
            np.testing.assert_allclose(mine.vectors, theirs.vectors, atol=1e-6)
            unstamped = replace(theirs.adapter, revision=mine.adapter.revision, update_time=mine.adapter.update_time)
            assert unstamped == mine.adapter


def test_vectors_of_another_embedder_are_not_imported(
    adapters: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "mean.npy", np.ones(DIM, np.float32))
    adapters("add", "one", "--checkpoint", "far/away", "--base-model", "b", "--vectors", str(tmp_path / "mean.npy"))
    adapters("export", str(tmp_path / "export.json"))
    with retrieval_service(tmp_path / "other", WordEmbedder(name="other")) as other:
        assert run(["adapters", "import", str(tmp_path / "export.json"), "--retrieval-target", other.address]) == 1
        error = capsys.readouterr().err
        assert "made by [words 16], the service embeds with [other 16]" in error


def test_names_complete_from_catalogue(
    adapters: Callable[..., Any], service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "mean.npy", np.ones(DIM, np.float32))
    for name in ("gmail", "google_maps", "ebay"):
        rest = ("--base-model", "b", "--vectors", str(tmp_path / "mean.npy"))
        assert adapters("add", name, "--checkpoint", f"far/{name}", *rest)[0] == 0
    monkeypatch.setenv("LORARETRIEVER_CLIENT_RETRIEVAL_TARGET", service.address)
    from orchestrator.cli.settings import environment

    environment.cache_clear()
    try:
        assert complete_adapters("g") == ["gmail", "google_maps"]
        monkeypatch.setenv("LORARETRIEVER_CLIENT_RETRIEVAL_TARGET", "127.0.0.1:9")
        environment.cache_clear()
        assert complete_adapters("g") == []
    finally:
        environment.cache_clear()


def test_layers_are_read_from_header_of_weights(tmp_path: Path) -> None:
    assert read_layers(checkpoint(tmp_path / "whole")) == AdaptedLayers(12, ("q_proj", "v_proj"))
    assert read_layers(tmp_path) == AdaptedLayers()


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def _header(text: bytes) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(struct.pack("<Q", len(text)) + text)


def _pickle(file: Path) -> None:
    file.rename(file.with_name("adapter_model.bin"))


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (_cut, "was it written to the end"),
        (lambda file: file.write_bytes(b"\x00"), "not a complete safetensors file"),
        (lambda file: file.write_bytes(struct.pack("<Q", 2**60) + b"{}"), "extends beyond its end"),
        (_header(b"[]"), "not a complete safetensors file"),
        (_header(b'{"x": {"shape": 3, "data_offsets": [0, 0]}}'), "not a complete safetensors file"),
        (_header(b"{}"), "has no lora_A"),
        (_pickle, "a pickle"),
    ],
)
def test_broken_weights_are_refused_at_registration(
    tmp_path: Path, spoil: Callable[[Path], object], problem: str
) -> None:
    folder = checkpoint(tmp_path)
    spoil(folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=problem):
        read_layers(folder)


def test_empty_list_tells_filter_from_empty_catalogue(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["adapters", "list", "--retrieval-target", service.address]
    assert run([*arguments, "--kind", "nosuch"]) == run(arguments) == 0
    filtered, empty = capsys.readouterr().err.splitlines()
    assert filtered == "no adapter matches --kind, --tag and --base-model; without them all are listed"
    assert empty == "no adapters; register one with 'loraretriever adapters add'"
