"""The host cache of adapter weights: what it keeps, and that concurrent reads of one adapter are shared."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import torch

from generation_service.adapters.host_cache import WeightStore
from generation_service.adapters.once import Once
from generation_service.adapters.source import AdapterSource
from generation_service.lora.h2d_copy import HostPacker
from generation_service.lora.weights import AdapterWeights, LoraPair
from infra.contract.errors import CheckpointError


def weights(*ranks: int) -> AdapterWeights:
    return AdapterWeights.of(
        {f"m{index}": LoraPair(torch.ones(rank, 6), torch.ones(5, rank)) for index, rank in enumerate(ranks)}
    )


def test_work_asked_for_by_many_is_done_once_and_its_failure_told_to_all() -> None:
    once: Once[str, int] = Once()
    begun, finish = threading.Event(), threading.Event()
    outcomes: list[object] = []
    calls: list[str] = []

    def fail() -> int:
        calls.append("a")
        begun.set()
        assert finish.wait(20)
        raise CheckpointError("half a file")

    def ask() -> None:
        try:
            outcomes.append(once("a", fail))
        except CheckpointError as error:
            outcomes.append(error.message)

    threads = [threading.Thread(target=ask) for _ in range(5)]
    threads[0].start()
    assert begun.wait(20)
    for thread in threads[1:]:
        thread.start()
    assert once("b", lambda: 7) == 7
    waiting = once._working["a"]._condition._waiters  # type: ignore[attr-defined]
    while len(waiting) < 4:
        time.sleep(0.001)
    finish.set()
    for thread in threads:
        thread.join()
    assert outcomes == ["half a file"] * 5
    assert calls == ["a"]
    assert once("a", lambda: 3) == 3


def store_of(sizes: dict[str, int], max_bytes: int) -> tuple[WeightStore, list[str]]:
    read: list[str] = []

    def reading(source: AdapterSource) -> AdapterWeights:
        read.append(source.adapter_id)
        return weights(sizes[source.adapter_id])

    class Nowhere:
        def resolve(self, adapter_id: str, revision: str) -> AdapterSource:
            raise AssertionError(adapter_id)

    return WeightStore(Nowhere(), reading, ["tiny"], max_bytes, host_form=HostPacker(torch.float32)), read


def test_the_store_keeps_the_last_used_within_its_bytes() -> None:
    store, read = store_of({"a": 2, "b": 2, "c": 3, "huge": 50}, max_bytes=11 * 4 * 5)
    ask = {name: AdapterSource(name, "1", Path("unused"), "") for name in ("a", "b", "c", "huge")}
    for name in ("a", "b", "a", "c", "a", "b"):
        assert store.weights(ask[name]).rank > 0
    assert read == ["a", "b", "c", "b"]
    assert store.bytes == 11 * 4 * 4
    assert store.weights(ask["huge"]).rank == 50
    assert store.bytes == 0
    assert store.weights(ask["a"]).rank == 2
    assert store.bytes == 11 * 4 * 2
