"""Baselines that retrieval must beat: adapters chosen regardless of the prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from infra.contract.adapter import Adapter
from infra.contract.composition import Base, Composition, Mixture, WeightedAdapter
from infra.contract.retrieval import RetrievalOptions
from orchestrator.answering.strategy import AnswerStrategy

#: Adapters drawn where the caller leaves top_k to the server: the default of the retrieval service.
_DEFAULT_TOP_K = 3


def choose(
    strategy: AnswerStrategy, adapters: Sequence[Adapter], options: RetrievalOptions, seed: str
) -> list[Adapter]:
    """Return the adapters that the strategy takes from the catalogue: all allowed ones, or a draw of them."""
    candidates = allowed(adapters, options)
    if strategy is AnswerStrategy.RANDOM_K:
        return draw(candidates, options.top_k or _DEFAULT_TOP_K, seed)
    return candidates


def allowed(adapters: Sequence[Adapter], options: RetrievalOptions) -> list[Adapter]:
    """Return the adapters that `options.include` and `options.exclude` permit."""
    return [
        adapter
        for adapter in adapters
        if adapter.adapter_id not in options.exclude and (not options.include or adapter.adapter_id in options.include)
    ]


def draw(adapters: Sequence[Adapter], count: int, seed: str) -> list[Adapter]:
    """Return `count` adapters: those with the smallest SHA-256 of seed and id.

    The draw does not depend on the order of the catalogue, and excluding an adapter changes only the draws that
    contained it.
    """

    def rank(adapter: Adapter) -> str:
        return hashlib.sha256(f"{seed}\n{adapter.adapter_id}".encode()).hexdigest()

    return sorted(adapters, key=rank)[:count]


def uniform(adapters: Sequence[Adapter]) -> Composition:
    """Return the mixture of the adapters with weight 1/n each; the base model alone where there are none."""
    if not adapters:
        return Base()
    weight = 1 / len(adapters)
    return Mixture(tuple(WeightedAdapter(adapter.adapter_id, weight, adapter.revision) for adapter in adapters))
