"""The host cache of adapter weights: what it keeps, and that concurrent reads of one adapter are shared."""

from __future__ import annotations

from pathlib import Path

import torch

from generation_service.adapters.host_cache import HostCache
from generation_service.adapters.source import AdapterSource
from generation_service.lora.weights import AdapterWeights, LoraPair

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


def test_host_cache_keeps_most_recently_used_weights_within_its_bytes() -> None:
    sources = FakeSources(a=2, b=2, c=3, huge=50)
    host_cache = HostCache(sources, sources.read, ["tiny"], max_bytes=5 * BYTES_PER_RANK)

    def rank(name: str) -> int:
        return host_cache.weights(host_cache.resolve(name, "1")).rank

    assert [rank(name) for name in "abacab"] == [2, 2, 2, 3, 2, 2]
    assert sources.reads == ["a", "b", "c", "b"]
    assert host_cache.bytes == 4 * BYTES_PER_RANK
    assert rank("huge") == 50
    assert host_cache.bytes == 0
    assert rank("a") == 2
    assert host_cache.bytes == 2 * BYTES_PER_RANK
