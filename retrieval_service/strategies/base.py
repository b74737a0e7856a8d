"""What every strategy offers."""

from __future__ import annotations

from typing import Protocol

from retrieval_service.embedders.base import FloatArray
from retrieval_service.strategies.examples import BoolArray, ExampleSet, Float64Array, IntArray


class FittedStrategy(Protocol):
    """Compares vectors with the adapters of one ExampleSet. Immutable, so safe for threads."""

    examples: ExampleSet

    @property
    def own_scale(self) -> BoolArray:
        """Which adapters' cosines are not those with their centroid and need a scale, [adapters]."""
        ...

    def cosines(self, queries: FloatArray) -> Float64Array:
        """Return the strategy's cosines in [-1, 1] of each query with each adapter, [queries, adapters]."""
        ...

    def left_out(self, rows: IntArray) -> Float64Array:
        """Return the same for examples, as if each had not been there when the strategy was fitted.

        `rows` are rows of the set whose adapters have other examples.
        """
        ...
