"""The order of matches: most similar first, equals by id, the same on every machine."""

from __future__ import annotations

import numpy as np

from retrieval_service.strategies.examples import Float64Array, IntArray

EQUAL = 2e-6  # similarities so near differ by the rounding of float32 sums, if at all


def ranking(similarities: Float64Array) -> IntArray:
    """Return the columns of [queries, adapters] by falling similarity; nearly equal neighbours by column.

    Those count as equal whose similarity is within 2e-6 of the most similar one of their group, so that which of two
    adapters with the same examples comes first does not hang on rounding.
    """
    order = np.argsort(-similarities, axis=1, kind="stable")
    falling = np.take_along_axis(similarities, order, axis=1)
    for row in np.flatnonzero((falling[:, :-1] - falling[:, 1:] < EQUAL).any(axis=1)):
        order[row] = _by_groups(order[row], falling[row])
    return order.astype(np.int64)


def _by_groups(order: IntArray, falling: Float64Array) -> IntArray:
    start, parts = 0, []
    while start < len(order):
        end = int(np.searchsorted(-falling, EQUAL - falling[start], side="left"))
        parts.append(np.sort(order[start : max(end, start + 1)]))
        start = max(end, start + 1)
    return np.concatenate(parts)
