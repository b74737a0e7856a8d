"""The scatter of examples within adapters, from which `calibrated` learns which directions to discount."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retrieval_service.strategies.examples import ExampleSet, Float64Array, IntArray

FITTED_EXAMPLES = 1024  # bounds the Gram matrix, and with it the time to fit
_MIN_SHARE = 0.1  # of all degrees of freedom: a kind with less has too few examples to estimate its width


@dataclass(frozen=True)
class KindScatter:
    """The summed squared residuals of the adapters of one kind, and their degrees of freedom."""

    squares: float
    freedom: int

    @property
    def width(self) -> float:
        """The variance within an adapter, summed over dimensions."""
        return self.squares / self.freedom if self.freedom else np.inf

    def without(self, squares: float) -> KindScatter:
        """Return the scatter without one example, which contributed `squares`."""
        return KindScatter(self.squares - squares, self.freedom - 1)


def deciding_kinds(scatters: dict[str, KindScatter]) -> dict[str, float]:
    """Return the width of each kind with enough degrees of freedom to decide which scatter is discounted."""
    total = sum(scatter.freedom for scatter in scatters.values())
    return {name: scatter.width for name, scatter in scatters.items() if scatter.freedom >= max(1, _MIN_SHARE * total)}


def nested_kinds(scatters: dict[str, KindScatter], kind: str) -> frozenset[str]:
    """Return the kinds whose scatter is discounted when adapters of `kind` are told apart; "" is all kinds.

    A category contains several apps, so its scatter includes the differences between them. Discounting those helps to
    tell categories apart but harms telling apps apart. The result is therefore the kinds no wider than `kind`; for all
    kinds, the narrowest; and if no kind has enough examples to decide, every kind with a scatter.
    """
    deciding = deciding_kinds(scatters)
    widest = deciding.get(kind, min(deciding.values())) if deciding else np.inf
    return frozenset(name for name, scatter in scatters.items() if scatter.freedom and scatter.width <= widest)


@dataclass(frozen=True, eq=False)
class Residuals:
    """Examples minus their adapter's mean, `vectors` [m, dim]; `counts` [m] is the number of examples in that mean.

    `positions` [n] maps each row of the set to its residual, -1 if it has none; `freedom` is degrees of freedom.
    """

    vectors: Float64Array
    counts: IntArray
    positions: IntArray
    freedom: int


def residuals(examples: ExampleSet, kinds: frozenset[str]) -> Residuals:
    """Return the residuals of those adapters of these kinds that have at least two examples.

    At most FITTED_EXAMPLES are used, so that the time to fit does not depend on the catalogue: the first examples
    of every adapter, or of evenly chosen adapters. The choice is deterministic: every replica fits the same.
    """
    adapters = [index for index, count in enumerate(examples.counts) if count > 1 and examples.kinds[index] in kinds]
    adapters = _evenly(adapters, FITTED_EXAMPLES // 2)
    per_adapter = max(2, FITTED_EXAMPLES // max(1, len(adapters)))
    positions = np.full(len(examples.owners), -1, np.int64)
    parts, counts = [np.zeros((0, examples.dim))], []
    taken = 0
    for adapter in adapters:
        rows = examples.rows_of(adapter)[:per_adapter]
        vectors = examples.vectors[rows].astype(np.float64)
        parts.append(vectors - vectors.mean(axis=0))
        counts += [len(rows)] * len(rows)
        positions[rows] = np.arange(taken, taken + len(rows))
        taken += len(rows)
    return Residuals(np.concatenate(parts), np.array(counts, np.int64), positions, taken - len(adapters))


def scatters(examples: ExampleSet) -> dict[str, KindScatter]:
    """Return the scatter of each kind."""
    squares = np.einsum("ij,ij->i", examples.vectors, examples.vectors, dtype=np.float64)
    inside = np.add.reduceat(squares, examples.starts) - examples.counts * (examples.means**2).sum(axis=1)
    by_kind: dict[str, KindScatter] = {}
    for index, kind in enumerate(examples.kinds):
        before = by_kind.get(kind, KindScatter(0.0, 0))
        by_kind[kind] = KindScatter(
            before.squares + max(0.0, float(inside[index])), before.freedom + int(examples.counts[index]) - 1
        )
    return by_kind


def scatters_without(scatters: dict[str, KindScatter], examples: ExampleSet, row: int) -> dict[str, KindScatter]:
    """Return the scatter of each kind without one example, whose adapter must have others."""
    owner = examples.owners[row]
    count, kind = examples.counts[owner], examples.kinds[owner]
    residual = examples.vectors[row] - examples.means[owner]
    return scatters | {kind: scatters[kind].without(float(residual @ residual) * count / (count - 1))}


def _evenly(items: Sequence[int], at_most: int) -> list[int]:
    if len(items) <= at_most:
        return list(items)
    return [items[index * len(items) // at_most] for index in range(at_most)]
