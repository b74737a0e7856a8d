"""The service on an event loop: adapters are loaded without delaying prompts, and closing waits for no queue."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import pytest

from generation_service.adapters.checking import AdapterCheck
from generation_service.adapters.source import AdapterSource
from generation_service.answers import GenerationService, ServedModel
from generation_service.models.base import BaseModel
from infra.runtime.images import ImageLimits
from tests.support.harness.residency_harness import ResidencyHarness
from tests.support.harness.scripted_engine import DESCRIPTION, ScriptedEngine, ScriptedModel


@pytest.fixture
def harness() -> ResidencyHarness:
    return ResidencyHarness()


@pytest.fixture
def service(harness: ResidencyHarness) -> Iterator[GenerationService]:
    with ScriptedEngine() as scripted:
        served = ServedModel(
            name="tiny",
            revision="1",
            description=DESCRIPTION,
            limits=scripted.engine.limits,
            image_limits=ImageLimits(),
            max_adapters=4,
            bank_ranks=harness.bank.ranks,
        )
        model = cast(BaseModel, ScriptedModel())
        service = GenerationService(
            served, model, harness.admission, harness.residency, scripted.engine, check=cast(AdapterCheck, None)
        )
        yield service
        service.close()


async def test_loaded_adapter_is_pinned(service: GenerationService) -> None:
    loaded = await service.load_adapter("r4-a")
    assert (loaded.adapter_id, loaded.pinned) == ("r4-a", True)
    assert service.residents() == [loaded]


async def test_slow_catalogue_leaves_loops_default_executor_free(
    service: GenerationService, harness: ResidencyHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    resolve, answered = harness.disk.resolve, threading.Event()

    def slow(adapter_id: str, revision: str) -> AdapterSource:
        assert answered.wait(timeout=20)
        return resolve(adapter_id, revision)

    monkeypatch.setattr(harness.disk, "resolve", slow)
    loads = [asyncio.create_task(service.load_adapter(f"r1-{index}")) for index in range(8)]
    await asyncio.sleep(0)
    try:
        assert await asyncio.wait_for(asyncio.to_thread(lambda: "free"), timeout=10) == "free"
    finally:
        answered.set()
    assert {loaded.rank for loaded in await asyncio.gather(*loads)} == {1}
