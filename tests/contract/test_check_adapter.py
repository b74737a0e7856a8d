"""CheckAdapter: what a running server says about an adapter before `adapters add` registers it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from orchestrator.cli.main import run
from orchestrator.cli.settings import environment
from tests.support.checkpoints.qwen2_vl import TinyShape, write_qwen2_vl
from tests.support.harness.generation_stack import served, settings_for, tiny_adapter
from tests.support.servers.retrieval_server import DIM, retrieval_service


@pytest.fixture(autouse=True)
def _fresh_environment() -> Iterator[None]:
    environment.cache_clear()
    yield
    environment.cache_clear()


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    tiny_adapter(TinyShape(), 1).write(folder / "good")
    tiny_adapter(TinyShape(), 1, base_model_name_or_path="qwen/QWEN2-VL-TINY").write(folder / "shouted")
    tiny_adapter(TinyShape(), 1, base_model_name_or_path="Qwen/Qwen2-VL-72B").write(folder / "larger")
    tiny_adapter(TinyShape(hidden=32), 1).write(folder / "narrow")
    tiny_adapter(TinyShape(), 1, use_dora=True).write(folder / "dora")
    tiny_adapter(TinyShape(), 1, rank=64).write(folder / "wide")
    np.save(folder / "mean.npy", np.ones(DIM, np.float32))
    return folder


@pytest.fixture(scope="module")
def generation(roots: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the address of a generation service that runs on a thread of its own."""
    base = write_qwen2_vl(tmp_path_factory.mktemp("base") / "Qwen2-VL-tiny", TinyShape())
    loop, started, stop = asyncio.new_event_loop(), asyncio.Event(), asyncio.Event()
    addresses: list[str] = []

    async def serve() -> None:
        async with served(settings_for(base, [roots], bank_ranks=32)) as running:
            addresses.append(running.address)
            started.set()
            await stop.wait()

    thread = Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    asyncio.run_coroutine_threadsafe(started.wait(), loop).result(timeout=120)
    yield addresses[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


@pytest.fixture
def tiers(generation: str, retrieval: str) -> tuple[str, ...]:
    return ("--retrieval-target", retrieval, "--generation-target", generation)


@pytest.fixture(scope="module")
def retrieval(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with retrieval_service(tmp_path_factory.mktemp("qdrant")) as running:
        yield running.address


def add(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any], str]:
    capsys.readouterr()
    status = run(["adapters", "add", *map(str, arguments), "--json"])
    printed = capsys.readouterr()
    return status, json.loads(printed.out or "{}"), printed.err


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("larger", "was trained on Qwen2-VL-72B; this server runs Qwen2-VL-tiny"),
        ("narrow", "tensors do not bind to this base model"),
        ("dora", "DoRA"),
        ("wide", "has rank 64, and the adapter bank takes 32 at most"),
        ("nowhere", "there is no such folder below"),
    ],
)
def test_adapter_that_cannot_be_served_is_not_registered(
    roots: Path, tiers: tuple[str, ...], capsys: pytest.CaptureFixture[str], name: str, problem: str
) -> None:
    base_model = ("--base-model", "Qwen2-VL-tiny") if name == "nowhere" else ()
    rest = ("--checkpoint", roots / name, "--vectors", roots / "mean.npy", *base_model, *tiers)
    status, _, error = add(capsys, name, *rest)
    assert status == 1
    assert problem in " ".join(error.split())
    assert run(["adapters", "show", name, *tiers[:2]]) == 1
    status, stored, _ = add(capsys, name, *rest, "--no-check")
    assert (status, stored["adapter_id"]) == (0, name)


@pytest.mark.parametrize("name", ["good", "shouted"])
def test_adapter_is_registered_under_name_of_running_model(
    roots: Path, tiers: tuple[str, ...], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    status, stored, error = add(capsys, name, "--checkpoint", roots / name, "--vectors", roots / "mean.npy", *tiers)
    assert (status, stored["base_model"], error) == (0, "Qwen2-VL-tiny", "")


def test_import_reports_adapters_that_cannot_be_served(
    roots: Path, tiers: tuple[str, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    entries = [
        {"lora_name": f"imported-{name}", "lora_path": str(roots / name), "embedding_path": str(roots / "mean.npy")}
        for name in ("good", "larger")
    ]
    (tmp_path / "list.json").write_text(json.dumps(entries))
    assert run(["adapters", "import", str(tmp_path / "list.json"), *tiers]) == 1
    printed = capsys.readouterr()
    assert "registered 1 of 2 adapters" in printed.out
    assert "was trained on Qwen2-VL-72B" in " ".join(printed.err.split())


def test_absent_generation_service_is_noted(roots: Path, retrieval: str, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("--retrieval-target", retrieval, "--generation-target", "127.0.0.1:9")
    rest = ("--checkpoint", roots / "larger", "--vectors", roots / "mean.npy", *where)
    status, stored, error = add(capsys, "unchecked", *rest)
    assert (status, stored["base_model"]) == (0, "Qwen2-VL-72B")
    assert "not checked: no generation service answers at 127.0.0.1:9" in error
