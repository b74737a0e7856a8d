"""How the examples of one adapter differ: the residuals from which `calibrated` learns what to look past."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retrieval_service.strategies.examples import ExampleSet, Float64Array, IntArray

FITTED_EXAMPLES = 1024
_LEAST_SHARE = 0.1  # of all degrees of freedom: a kind with less decides nothing


@dataclass(frozen=True)
class KindScatter:
    """Of the adapters of one kind: the summed squared residuals, and their degrees of freedom."""

    squares: float
    freedom: int

    @property
    def width(self) -> float:
        """The variance within an adapter, summed over dimensions."""
        return self.squares / self.freedom if self.freedom else np.inf

    def without(self, squares: float) -> KindScatter:
        """Return the scatter without one example, which gave `squares` to it."""
        return KindScatter(self.squares - squares, self.freedom - 1)


def deciding_kinds(scatters: dict[str, KindScatter]) -> dict[str, float]:
    """Return the width of each kind that has enough degrees of freedom for it to decide what is looked past."""
    total = sum(one.freedom for one in scatters.values())
    return {name: one.width for name, one in scatters.items() if one.freedom >= max(1, _LEAST_SHARE * total)}


def nested_kinds(scatters: dict[str, KindScatter], kind: str) -> frozenset[str]:
    """Return the kinds whose scatter is to be looked past when adapters of `kind` are told apart; "" is all kinds.

    A category holds several apps, so its scatter contains the differences between them: good to look past between
    categories, harmful between apps. So: the kinds that are no wider than `kind`, and for all kinds the tightest.
    Among so many kinds that none decides, all that have a scatter.
    """
    deciding = deciding_kinds(scatters)
    widest = deciding.get(kind, min(deciding.values())) if deciding else np.inf
    return frozenset(name for name, one in scatters.items() if one.freedom and one.width <= widest)


@dataclass(frozen=True, eq=False)
class Residuals:
    """Examples minus their adapter's mean, `vectors` [m, dim], and how many examples the mean is of, `counts` [m].

    `places` [n] is the residual of each row of the set, -1 where it has none; `freedom` counts the degrees of freedom.
    """

    vectors: Float64Array
    counts: IntArray
    places: IntArray
    freedom: int


def residuals(examples: ExampleSet, kinds: frozenset[str]) -> Residuals:
    """Return the residuals of the adapters of these kinds that have two examples or more.

    At most FITTED_EXAMPLES, so that fitting takes the same time however large the catalogue is: the first examples of
    every adapter, or of evenly chosen ones, so that every replica takes the same.
    """
    adapters = [index for index, count in enumerate(examples.counts) if count > 1 and examples.kinds[index] in kinds]
    adapters = _evenly(adapters, FITTED_EXAMPLES // 2)
    each = max(2, FITTED_EXAMPLES // max(1, len(adapters)))
    places = np.full(len(examples.owners), -1, np.int64)
    parts, counts = [np.zeros((0, examples.dim))], []
    taken = 0
    for adapter in adapters:
        rows = examples.rows_of(adapter)[:each]
        vectors = examples.vectors[rows].astype(np.float64)
        parts.append(vectors - vectors.mean(axis=0))
        counts += [len(rows)] * len(rows)
        places[rows] = np.arange(taken, taken + len(rows))
        taken += len(rows)
    return Residuals(np.concatenate(parts), np.array(counts, np.int64), places, taken - len(adapters))


def scatters(examples: ExampleSet) -> dict[str, KindScatter]:
    """Return the scatter of each kind."""
    squares = np.einsum("ij,ij->i", examples.vectors, examples.vectors, dtype=np.float64)
    inside = np.add.reduceat(squares, examples.starts) - examples.counts * (examples.means**2).sum(axis=1)
    found: dict[str, KindScatter] = {}
    for index, kind in enumerate(examples.kinds):
        before = found.get(kind, KindScatter(0.0, 0))
        found[kind] = KindScatter(
            before.squares + max(0.0, float(inside[index])), before.freedom + int(examples.counts[index]) - 1
        )
    return found


def _evenly(items: Sequence[int], at_most: int) -> list[int]:
    if len(items) <= at_most:
        return list(items)
    return [items[index * len(items) // at_most] for index in range(at_most)]
