"""The order of matches: by falling similarity, ties by id, the same on every machine."""

from __future__ import annotations

import numpy as np

from retrieval_service.strategies.examples import Float64Array, IntArray

TIE_TOLERANCE = 2e-6  # rounding error of float32 sums of a few thousand terms


def ranking(similarities: Float64Array, top_k: int | None = None) -> IntArray:
    """Return the `top_k` best columns (None: all) of [queries, adapters], ties by column.

    Similarities within 2e-6 of the highest of their group are ties. Otherwise the order of two adapters with the same
    examples would depend on rounding.
    """
    order = np.argsort(-similarities, axis=1, kind="stable")
    falling = np.take_along_axis(similarities, order, axis=1)
    near = (falling[:, :-1] - falling[:, 1:] < TIE_TOLERANCE)[:, :top_k]
    for row in np.flatnonzero(near.any(axis=1)):
        _sort_groups(order[row], falling[row], np.flatnonzero(near[row]))
    return order[:, :top_k].astype(np.int64)


def _sort_groups(order: IntArray, falling: Float64Array, near: IntArray) -> None:
    """Sort each group of ties in place. `near` are the positions whose next position is a tie."""
    end = 0
    for start in near:
        if start < end:
            continue
        end = start + 1
        while end < len(order) and falling[start] - falling[end] < TIE_TOLERANCE:
            end += 1
        order[start:end] = np.sort(order[start:end])
