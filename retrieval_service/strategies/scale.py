"""Maps the similarities of all strategies to one scale: that of the cosine with the centroid.

Strategies spread their cosines differently: where one finds 0.91 for the right adapter and 0.82 for others, another
finds 0.86 and 0.74. A minimum similarity or a temperature would mean something else under each. Every strategy's
cosines are therefore mapped by a strictly increasing, piecewise linear function through (-1, -1), (o, o'), (r, r') and
(1, 1). Here o and r are their means over wrong and right pairs of the catalogue's own examples, each left out of its
adapter, and o' and r' those of the centroid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from infra.contract.retrieval import RetrievalStrategy
from retrieval_service.embedders.base import FloatArray
from retrieval_service.strategies.calibrated import Calibrated
from retrieval_service.strategies.centroid import Centroid
from retrieval_service.strategies.examples import BoolArray, ExampleSet, Float64Array, IntArray
from retrieval_service.strategies.multi_centroid import MultiCentroid
from retrieval_service.strategies.nearest_examples import NearestExamples
from retrieval_service.strategies.temperature import DEFAULT_TEMPERATURE, fitted_temperature
from retrieval_service.strategies.two_covariance import Gauge, TwoCovariance

_SCALE_EXAMPLES = 256  # bounds the leave-one-out pass of each fit


class FittedStrategy(Protocol):
    """Compares vectors with the adapters of one ExampleSet. Immutable, hence safe for threads."""

    examples: ExampleSet

    @property
    def own_scale(self) -> BoolArray:
        """Adapters whose cosines are not those with the centroid and need mapping to the common scale, [adapters]."""
        ...

    def cosines(self, queries: FloatArray) -> Float64Array:
        """Return the strategy's cosines in [-1, 1] of each query with each adapter, [queries, adapters]."""
        ...

    def left_out(self, rows: IntArray) -> Float64Array:
        """Return the cosines of examples, each as if it had not been part of the fit.

        `rows` are rows of the set whose adapters have other examples.
        """
        ...


@dataclass(frozen=True)
class Scale:
    """The points of the mapping. The default is the identity."""

    cosines: tuple[float, ...] = (-1.0, 1.0)
    similarities: tuple[float, ...] = (-1.0, 1.0)

    @classmethod
    def through(cls, cosines: tuple[float, float], similarities: tuple[float, float]) -> Scale:
        """Return the mapping of (wrong, right) means; the identity if they are not in ascending order."""
        if all(-1 < low < high < 1 for low, high in (cosines, similarities)):
            return cls((-1.0, *cosines, 1.0), (-1.0, *similarities, 1.0))
        return cls()

    def apply(self, cosines: Float64Array) -> Float64Array:
        """Return the similarities of cosines, both in [-1, 1]."""
        return np.interp(cosines, self.cosines, self.similarities)


@dataclass(frozen=True, eq=False)
class Scores:
    """Similarities on the common scale, and logarithms of probabilities up to a constant, both [queries, adapters].

    `has_odds`: the log-weights are log-odds against an adapter that is not registered.
    """

    similarities: Float64Array
    log_weights: Float64Array
    has_odds: bool

    @classmethod
    def concatenated(cls, parts: Sequence[Scores]) -> Scores:
        """Return the scores of all queries, in order."""
        return cls(
            np.concatenate([part.similarities for part in parts]),
            np.concatenate([part.log_weights for part in parts]),
            parts[0].has_odds,
        )

    @property
    def evidence(self) -> Float64Array:
        """What tells whether an adapter fits at all, comparable between queries: log-odds, or else similarities."""
        return self.log_weights if self.has_odds else self.similarities

    def of_adapters(self, columns: Sequence[int]) -> Scores:
        """Return the scores of some of the adapters."""
        return Scores(self.similarities[:, columns], self.log_weights[:, columns], self.has_odds)

    def set_row(self, index: int, scores: Scores) -> None:
        """Replace the scores of one query."""
        self.similarities[index], self.log_weights[index] = scores.similarities[0], scores.log_weights[0]


class Similarities:
    """A fitted strategy with similarities on the common scale. Immutable, hence safe for threads."""

    def __init__(self, strategy: RetrievalStrategy, examples: ExampleSet, kind: str = "") -> None:
        """Fit the strategy. `kind` is the kind of adapters to tell apart; "" is all of them."""
        self.strategy = strategy
        self.examples = examples
        self._kind = kind
        self._fitted = _fitted(strategy, examples, kind)
        self._own_scale: BoolArray = self._fitted.own_scale
        self._scale = _scale(self._fitted) if self._own_scale.any() else Scale()

    def of(self, queries: FloatArray) -> Float64Array:
        """Return the similarity in [-1, 1] of each query of [n, dim] with each adapter, [n, adapters].

        Adapters with only a precomputed mean are compared with that mean under every strategy.
        """
        return self._scaled(self._fitted.cosines(queries))

    def left_out(self, rows: IntArray) -> Float64Array:
        """Return the similarities of examples of the set, each as if it had not been part of the fit.

        Only the means that define the scale include it; the order of adapters with examples does not depend on them.
        """
        return self._scaled(self._fitted.left_out(rows))

    def scores(self, queries: FloatArray) -> Scores:
        """Return similarities and log-weights of queries [n, dim].

        The log-weights of `two_covariance` are log-odds against an adapter that is not registered; those of the other
        strategies are similarities divided by `temperature`.
        """
        similarities = self.of(queries)
        if isinstance(self._fitted, TwoCovariance):
            return Scores(similarities, self._fitted.log_likelihoods(queries).log_odds, has_odds=True)
        return Scores(similarities, similarities / self.temperature, has_odds=False)

    def left_out_scores(self, rows: IntArray) -> Scores:
        """Return the scores of examples of the set, each as if it had not been part of the fit."""
        similarities = self.left_out(rows)
        if isinstance(self._fitted, TwoCovariance):
            return Scores(similarities, self._fitted.left_out_log_likelihoods(rows).log_odds, has_odds=True)
        return Scores(similarities, similarities / self.temperature, has_odds=False)

    def scores_without(self, left_out: IntArray, query: FloatArray) -> Scores:
        """Return the scores of one query [1, dim] with the strategy fitted again without some examples.

        Scale, temperature and k are those of the whole set. An adapter without any other example gets -1 and -infinity.
        """
        examples = self.examples
        emptied = [
            adapter for adapter in set(examples.owners[left_out].tolist()) if _is_emptied(examples, adapter, left_out)
        ]
        reduced = examples.without(left_out[~np.isin(examples.owners[left_out], emptied)])
        fixed = self._fitted.gauge if isinstance(self._fitted, TwoCovariance) else None
        fitted = _fitted(self.strategy, reduced, self._kind, fixed)
        similarities = self._scaled(fitted.cosines(query))
        if isinstance(fitted, TwoCovariance):
            scores = Scores(similarities, fitted.log_likelihoods(query).log_odds, has_odds=True)
        else:
            scores = Scores(similarities, similarities / self.temperature, has_odds=False)
        scores.similarities[:, emptied], scores.log_weights[:, emptied] = -1.0, -np.inf
        return scores

    @cached_property
    def temperature(self) -> float:
        """The softmax temperature at which the examples' own adapters are most likely, each example left out."""
        rows = self.examples.testable(_SCALE_EXAMPLES)
        if len(self.examples.ids) < 2 or not len(rows):
            return DEFAULT_TEMPERATURE
        return fitted_temperature(self.left_out(rows), self.examples.owners[rows])

    def _scaled(self, cosines: Float64Array) -> Float64Array:
        similarities = np.where(self._own_scale, self._scale.apply(cosines), cosines)
        return np.clip(similarities, -1, 1)


def _is_emptied(examples: ExampleSet, adapter: int, left_out: IntArray) -> bool:
    return int((examples.owners[left_out] == adapter).sum()) == int(examples.counts[adapter])


def _fitted(strategy: RetrievalStrategy, examples: ExampleSet, kind: str, gauge: Gauge | None = None) -> FittedStrategy:
    match strategy:
        case RetrievalStrategy.CENTROID:
            return Centroid(examples)
        case RetrievalStrategy.MULTI_CENTROID:
            return MultiCentroid(examples)
        case RetrievalStrategy.NEAREST_EXAMPLES:
            return NearestExamples(examples)
        case RetrievalStrategy.CALIBRATED:
            return Calibrated(examples, kind)
        case RetrievalStrategy.TWO_COVARIANCE:
            return TwoCovariance(examples, kind, gauge)


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
