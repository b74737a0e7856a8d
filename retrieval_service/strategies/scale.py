"""One scale for the similarities of all strategies: that of the cosine with the centroid.

Strategies spread their cosines differently: one may find 0.91 for the right adapter and 0.82 for others where another
finds 0.86 and 0.74. A minimum similarity or a temperature would mean something else under each. So every strategy's
cosines s are mapped, strictly increasing and piecewise linearly, through (-1, -1), (o, o'), (r, r'), (1, 1): o and r
are their means over wrong and right pairs of the catalogue's own examples, each left out of its adapter, o' and r'
those of the centroid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infra.contract.retrieval import RetrievalStrategy
from retrieval_service.embedders.base import FloatArray
from retrieval_service.strategies.base import FittedStrategy
from retrieval_service.strategies.calibrated import Calibrated
from retrieval_service.strategies.centroid import Centroid
from retrieval_service.strategies.examples import BoolArray, ExampleSet, Float64Array, IntArray
from retrieval_service.strategies.multi_centroid import MultiCentroid
from retrieval_service.strategies.nearest_examples import NearestExamples

_SCALE_EXAMPLES = 256


@dataclass(frozen=True)
class Scale:
    """The points through which cosines are mapped; without inner points nothing changes."""

    given: tuple[float, ...] = (-1.0, 1.0)
    wanted: tuple[float, ...] = (-1.0, 1.0)

    @classmethod
    def through(cls, given: tuple[float, float], wanted: tuple[float, float]) -> Scale:
        """Return the scale through (wrong, right) means; the plain one where they are not in order."""
        if all(-1 < low < high < 1 for low, high in (given, wanted)):
            return cls((-1.0, *given, 1.0), (-1.0, *wanted, 1.0))
        return cls()

    def apply(self, cosines: Float64Array) -> Float64Array:
        """Return the similarities of cosines, both in [-1, 1]."""
        return np.interp(cosines, self.given, self.wanted)


class Similarities:
    """A strategy whose similarities are on the common scale. Immutable, so safe for threads."""

    def __init__(self, strategy: RetrievalStrategy, examples: ExampleSet, kind: str = "") -> None:
        """Fit the strategy. `kind` is the kind of adapters to tell apart; "" is all of them."""
        self.strategy = strategy
        self.examples = examples
        self._fitted = _fitted(strategy, examples, kind)
        self._own_scale: BoolArray = self._fitted.own_scale
        self._scale = _scale(self._fitted) if self._own_scale.any() else Scale()

    def of(self, queries: FloatArray) -> Float64Array:
        """Return the similarity in [-1, 1] of each query of [n, dim] with each adapter, [n, adapters].

        Adapters of which only a ready-made mean is known are compared with it, whatever the strategy.
        """
        return self._scaled(self._fitted.cosines(queries))

    def left_out(self, rows: IntArray) -> Float64Array:
        """Return the same for examples of the set, each as if it had not been there when the strategy was fitted.

        Only the means that make the scale have seen it; no strategy's order of adapters with examples hangs on those.
        """
        return self._scaled(self._fitted.left_out(rows))

    def _scaled(self, cosines: Float64Array) -> Float64Array:
        found = np.where(self._own_scale, self._scale.apply(cosines), cosines)
        return np.clip(found, -1, 1)


def _fitted(strategy: RetrievalStrategy, examples: ExampleSet, kind: str) -> FittedStrategy:
    match strategy:
        case RetrievalStrategy.CENTROID:
            return Centroid(examples)
        case RetrievalStrategy.MULTI_CENTROID:
            return MultiCentroid(examples)
        case RetrievalStrategy.NEAREST_EXAMPLES:
            return NearestExamples(examples)
        case RetrievalStrategy.CALIBRATED:
            return Calibrated(examples, kind)


def _scale(fitted: FittedStrategy) -> Scale:
    rows = fitted.examples.testable(_SCALE_EXAMPLES)
    if not len(rows) or len(fitted.examples.ids) < 2:
        return Scale()
    owners = fitted.examples.owners[rows]
    return Scale.through(
        _wrong_and_right(fitted.left_out(rows), owners),
        _wrong_and_right(Centroid(fitted.examples).left_out(rows), owners),
    )


def _wrong_and_right(cosines: Float64Array, owners: IntArray) -> tuple[float, float]:
    right = cosines[np.arange(len(owners)), owners]
    wrong = (cosines.sum() - right.sum()) / (cosines.size - len(right))
    return float(wrong), float(right.mean())
