"""Queries with each stored example for its adapter, which is built from the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from infra.contract.errors import InvalidArgumentError
from infra.contract.retrieval import RetrievalStrategy, Weighting
from retrieval_service.evaluation.outcomes import Outcome
from retrieval_service.strategies.examples import ExampleSet, Float64Array, IntArray
from retrieval_service.strategies.ranking import ranking
from retrieval_service.strategies.scale import Similarities
from retrieval_service.weighting import weigh

_MAX_QUERIES = 2000  # standard error of a share is at most 1.1 % at this many; `calibrated` costs time per query
_FEW_REPEATS = 10
_TEMPERATURES = np.geomspace(1e-3, 10.0, 401)


@dataclass(frozen=True, eq=False)
class Trial:
    """Similarities [queries, adapters] of examples with every adapter, and the right adapter of each, [queries]."""

    ids: tuple[str, ...]
    similarities: Float64Array
    truth: IntArray

    def outcomes(self, top_k: int, weighting: Weighting, temperature: float) -> list[Outcome]:
        """Return the outcomes of retrieval with `top_k` weighted adapters, ties by id."""
        order = ranking(self.similarities)
        ranks = (order == self.truth[:, None]).argmax(axis=1) + 1
        outcomes = []
        for row, best in enumerate(order[:, :top_k]):
            weights = weigh(self.similarities[row, best].tolist(), weighting, temperature)
            retrieved = tuple(self.ids[column] for column in best)
            outcomes.append(Outcome(self.ids[self.truth[row]], int(ranks[row]), retrieved, tuple(weights)))
        return outcomes

    def best_temperature(self) -> float:
        """Return the temperature T at which softmax weights over all adapters make the right one most likely.

        It minimises the mean of -log softmax(s / T)[right] (temperature scaling; Guo et al. 2017, section 4.2) on a
        grid from 0.001 to 10 in steps of 2.3 %.
        """
        best = self.similarities.max(axis=1, keepdims=True)
        shifted = self.similarities - best
        right = shifted[np.arange(len(self.truth)), self.truth]
        losses = [
            float(np.mean(np.log(np.exp(shifted / temperature).sum(axis=1)) - right / temperature))
            for temperature in _TEMPERATURES.tolist()
        ]
        return float(_TEMPERATURES[int(np.argmin(losses))])


def leave_one_out(strategy: RetrievalStrategy, examples: ExampleSet, kind: str = "") -> Trial:
    """Return the trial of at most _MAX_QUERIES examples whose adapters have other examples.

    Raises InvalidArgumentError if there are none, or only one adapter.
    """
    rows = examples.testable(_MAX_QUERIES)
    if len(examples.ids) < 2 or not len(rows):
        raise InvalidArgumentError("", "nothing to tell apart; leave-one-out needs two adapters with two examples each")
    return Trial(examples.ids, Similarities(strategy, examples, kind).left_out(rows), examples.owners[rows])


def few_examples(
    strategies: Sequence[RetrievalStrategy], examples: ExampleSet, count: int, seed: int
) -> dict[RetrievalStrategy, Trial]:
    """Return trials over ten random draws: `count` examples per adapter are stored and all others are queries.

    All strategies see the same draws. Raises InvalidArgumentError if no adapter has more than `count` examples.
    """
    if count < 1 or not (examples.counts > count).any() or len(examples.ids) < 2:
        most = int(examples.counts.max(initial=0))
        raise InvalidArgumentError("few", f"must be at least 1 and below {most}, the most examples an adapter has")
    similarities: dict[RetrievalStrategy, list[Float64Array]] = {strategy: [] for strategy in strategies}
    truth: list[IntArray] = []
    for stored_rows, query_rows in _draws(examples, count, seed):
        stored = ExampleSet(examples.ids, examples.kinds, examples.vectors[stored_rows], examples.owners[stored_rows])
        truth.append(examples.owners[query_rows])
        for strategy in strategies:
            similarities[strategy].append(Similarities(strategy, stored).of(examples.vectors[query_rows]))
    return {
        strategy: Trial(examples.ids, np.concatenate(draws), np.concatenate(truth))
        for strategy, draws in similarities.items()
    }


def _draws(examples: ExampleSet, count: int, seed: int) -> Iterator[tuple[IntArray, IntArray]]:
    """Yield (stored rows, query rows) of each draw."""
    generator = np.random.default_rng(seed)
    for _ in range(_FEW_REPEATS):
        shuffled = [generator.permutation(examples.rows_of(adapter)) for adapter in range(len(examples.ids))]
        yield (
            np.concatenate([np.sort(rows[:count]) for rows in shuffled]),
            np.concatenate([rows[count:] for rows in shuffled]),
        )
