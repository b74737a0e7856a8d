"""The host cache of adapter weights: what it keeps, and that concurrent reads of one adapter are shared."""

from __future__ import annotations

from pathlib import Path

import torch

from generation_service.adapters.host_cache import WeightStore
from generation_service.adapters.source import AdapterSource
from generation_service.lora.h2d_copy import HostPacker
from generation_service.lora.weights import AdapterWeights, LoraPair


def weights(*ranks: int) -> AdapterWeights:
    return AdapterWeights.of(
        {f"m{index}": LoraPair(torch.ones(rank, 6), torch.ones(5, rank)) for index, rank in enumerate(ranks)}
    )


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
