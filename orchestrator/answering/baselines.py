"""Adapters taken whatever the prompt is: the yardsticks that retrieval must beat."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from infra.contract.adapter import Adapter
from infra.contract.composition import Base, Composition, Mixture, WeightedAdapter
from infra.contract.retrieval import RetrievalOptions

DEFAULT_TOP_K = 3
"""Adapters that are drawn where the caller leaves top_k to the server: as many as the retrieval service returns."""


def allowed(adapters: Sequence[Adapter], options: RetrievalOptions) -> list[Adapter]:
    """Return the adapters that the options neither exclude nor, where they include any, leave out."""
    return [
        adapter
        for adapter in adapters
        if adapter.adapter_id not in options.exclude and (not options.include or adapter.adapter_id in options.include)
    ]


def draw(adapters: Sequence[Adapter], count: int, seed: str) -> list[Adapter]:
    """Return `count` adapters, those with the smallest SHA-256 of seed and id.

    The draw depends on nothing else, least of all on the order of the catalogue; hiding an adapter changes the draws
    that held it only.
    """

    def rank(adapter: Adapter) -> str:
        return hashlib.sha256(f"{seed}\n{adapter.adapter_id}".encode()).hexdigest()

    return sorted(adapters, key=rank)[:count]


def uniform(adapters: Sequence[Adapter]) -> Composition:
    """Return their mixture with weight 1/n each; the base model alone where there is none."""
    if not adapters:
        return Base()
    weight = 1 / len(adapters)
    return Mixture(tuple(WeightedAdapter(each.adapter_id, weight, each.revision) for each in adapters))
