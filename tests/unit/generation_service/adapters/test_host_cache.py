"""The host cache of adapter weights: what it keeps, and that concurrent reads of one adapter are shared."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import torch

from generation_service.adapters.host_cache import WeightStore
from generation_service.adapters.once import Once
from generation_service.adapters.source import AdapterSource
from generation_service.lora.weights import AdapterWeights, LoraPair
from infra.contract.errors import CheckpointError

BYTES_PER_RANK = 4 * (6 + 5)


class FakeSources:
    """An AdapterResolver of adapters whose ranks are `ranks`; counts reads."""

    def __init__(self, **ranks: int) -> None:
        self._ranks = ranks
        self.reads: list[str] = []

    def resolve(self, adapter_id: str, revision: str) -> AdapterSource:
        return AdapterSource(adapter_id, revision or "1", Path("unused"), "tiny")

    def read(self, source: AdapterSource) -> AdapterWeights:
        self.reads.append(source.adapter_id)
        rank = self._ranks[source.adapter_id]
        return AdapterWeights.of({"layer": LoraPair(torch.ones(rank, 6), torch.ones(5, rank))}, source.revision)


def test_weight_store_keeps_the_most_recently_used_weights_within_its_bytes() -> None:
    sources = FakeSources(a=2, b=2, c=3, huge=50)
    store = WeightStore(sources, sources.read, ["tiny"], max_bytes=5 * BYTES_PER_RANK)

    def rank(name: str) -> int:
        return store.weights(store.resolve(name, "1")).rank

    assert [rank(name) for name in "abacab"] == [2, 2, 2, 3, 2, 2]
    assert sources.reads == ["a", "b", "c", "b"]
    assert store.bytes == 4 * BYTES_PER_RANK
    assert rank("huge") == 50
    assert store.bytes == 0
    assert rank("a") == 2
    assert store.bytes == 2 * BYTES_PER_RANK


def test_concurrent_reads_of_one_key_share_one_execution_and_its_error() -> None:
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
