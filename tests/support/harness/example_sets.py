"""Generates example vectors of adapters: a direction per adapter, and noise common to all."""

from __future__ import annotations

import numpy as np

from retrieval_service.embedders.base import FloatArray
from retrieval_service.strategies.examples import ExampleSet


def clouds(
    counts: dict[str, int], *, dim: int = 16, noise: float = 1.0, seed: int = 0, kinds: dict[str, str] | None = None
) -> ExampleSet:
    """Return adapters with that many examples each: a random direction plus noise, strong in a third of the space."""
    generator = np.random.default_rng(seed)
    strength = np.where(np.arange(dim) < dim // 3, noise, 0.15 * noise)
    common = generator.normal(size=dim)
    examples: dict[str, FloatArray] = {}
    for name, count in counts.items():
        own = common + 0.5 * generator.normal(size=dim)
        examples[name] = (own + strength * generator.normal(size=(count, dim))).astype(np.float32)
    return ExampleSet.of(examples, kinds)
