"""Each stored example asked for its adapter, which is built from the others."""

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

MAX_QUERIES = 2000
FEW_REPEATS = 10
_TEMPERATURES = np.geomspace(1e-3, 10.0, 401)


@dataclass(frozen=True, eq=False)
class Trial:
    """Similarities [queries, adapters] of examples with every adapter, and which adapter is theirs, [queries]."""

    ids: tuple[str, ...]
    similarities: Float64Array
    truth: IntArray

    def outcomes(self, top_k: int, weighting: Weighting, temperature: float) -> list[Outcome]:
        """Return what retrieval would answer with `top_k` weighted adapters, equals by id."""
        order = ranking(self.similarities)
        ranks = (order == self.truth[:, None]).argmax(axis=1) + 1
        found = []
        for row, best in enumerate(order[:, :top_k]):
            weights = weigh(self.similarities[row, best].tolist(), weighting, temperature)
            retrieved = tuple(self.ids[one] for one in best)
            found.append(Outcome(self.ids[self.truth[row]], int(ranks[row]), retrieved, tuple(weights)))
        return found

    def best_temperature(self) -> float:
        """Return the temperature T of softmax weights over all adapters that makes the right one's most likely.

        It minimises the mean of -log softmax(s / T)[right] (temperature scaling; Guo et al. 2017, section 4.2), on a
        grid of 1 % steps from 0.001 to 10.
        """
        best = self.similarities.max(axis=1, keepdims=True)
        above = self.similarities - best
        right = above[np.arange(len(self.truth)), self.truth]
        losses = [
            float(np.mean(np.log(np.exp(above / one).sum(axis=1)) - right / one)) for one in _TEMPERATURES.tolist()
        ]
        return float(_TEMPERATURES[int(np.argmin(losses))])


def leave_one_out(strategy: RetrievalStrategy, examples: ExampleSet, kind: str = "") -> Trial:
    """Return the trial of every example that has others beside it in its adapter, at most MAX_QUERIES of them.

    Raises InvalidArgumentError when there is none, or when there is one adapter only.
    """
    rows = examples.testable(MAX_QUERIES)
    if len(examples.ids) < 2 or not len(rows):
        raise InvalidArgumentError("", "nothing to tell apart; leave-one-out needs two adapters with two examples each")
    return Trial(examples.ids, Similarities(strategy, examples, kind).left_out(rows), examples.owners[rows])


def few_examples(
    strategies: Sequence[RetrievalStrategy], examples: ExampleSet, count: int, seed: int
) -> dict[RetrievalStrategy, Trial]:
    """Return trials in which `count` examples an adapter are stored and all its others ask, over ten random draws.

    All strategies see the same draws. Raises InvalidArgumentError when no adapter has more than `count` examples.
    """
    if count < 1 or not (examples.counts > count).any() or len(examples.ids) < 2:
        most = int(examples.counts.max(initial=0))
        raise InvalidArgumentError("few", f"must be at least 1 and below {most}, the most examples an adapter has")
    similarities: dict[RetrievalStrategy, list[Float64Array]] = {strategy: [] for strategy in strategies}
    truth: list[IntArray] = []
    for stored, asked in _draws(examples, count, seed):
        known = ExampleSet(examples.ids, examples.kinds, examples.vectors[stored], examples.owners[stored])
        truth.append(examples.owners[asked])
        for strategy in strategies:
            similarities[strategy].append(Similarities(strategy, known).of(examples.vectors[asked]))
    return {
        strategy: Trial(examples.ids, np.concatenate(found), np.concatenate(truth))
        for strategy, found in similarities.items()
    }


def _draws(examples: ExampleSet, count: int, seed: int) -> Iterator[tuple[IntArray, IntArray]]:
    generator = np.random.default_rng(seed)
    for _ in range(FEW_REPEATS):
        rows = [generator.permutation(examples.rows_of(adapter)) for adapter in range(len(examples.ids))]
        yield np.concatenate([np.sort(one[:count]) for one in rows]), np.concatenate([one[count:] for one in rows])
