"""The order of matches: most similar first, equals by id, the same on every machine."""

from __future__ import annotations

import numpy as np

from retrieval_service.strategies.examples import Float64Array, IntArray

EQUAL = 2e-6  # similarities so near differ by the rounding of float32 sums, if at all


def ranking(similarities: Float64Array, top_k: int | None = None) -> IntArray:
    """Return the `top_k` best columns (all without it) of [queries, adapters]; nearly equal ones by column.

    Those count as equal whose similarity is within 2e-6 of the most similar one of their group, so that which of two
    adapters with the same examples comes first does not hang on rounding.
    """
    order = np.argsort(-similarities, axis=1, kind="stable")
    falling = np.take_along_axis(similarities, order, axis=1)
    near = (falling[:, :-1] - falling[:, 1:] < EQUAL)[:, :top_k]
    for row in np.flatnonzero(near.any(axis=1)):
        _sort_groups(order[row], falling[row], np.flatnonzero(near[row]))
    return order[:, :top_k].astype(np.int64)


def _sort_groups(order: IntArray, falling: Float64Array, near: IntArray) -> None:
    """Sort each group in place; `near` are the places whose next one is equal to them."""
    end = 0
    for start in near:
        if start < end:
            continue
        end = start + 1
        while end < len(order) and falling[start] - falling[end] < EQUAL:
            end += 1
        order[start:end] = np.sort(order[start:end])
