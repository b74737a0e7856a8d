"""Queries with each stored example for its adapter, which is built from the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from infra.contract.errors import InvalidArgumentError
from infra.contract.retrieval import RetrievalStrategy, Weighting
from retrieval_service.evaluation.intervals import Difference, paired_difference
from retrieval_service.evaluation.outcomes import Outcome
from retrieval_service.strategies.examples import ExampleSet, Float64Array, IntArray
from retrieval_service.strategies.ranking import ranking
from retrieval_service.strategies.scale import Scores, Similarities
from retrieval_service.strategies.temperature import fitted_temperature
from retrieval_service.weighting import weigh

_MAX_QUERIES = 2000  # standard error of a share is at most 1.1 % at this many; `calibrated` costs time per query
_MAX_REFITTED_QUERIES = 400  # each query with a twin fits its strategy anew, in about 50 ms
_FEW_REPEATS = 10


@dataclass(frozen=True, eq=False)
class Trial:
    """Scores [queries, adapters] of examples with every adapter, and the right adapter of each, [queries].

    `twins` is how many queries were stored under another adapter too, where they were left out as well.
    """

    ids: tuple[str, ...]
    scores: Scores
    truth: IntArray
    twins: int = 0

    def outcomes(self, top_k: int, weighting: Weighting, temperature: float) -> list[Outcome]:
        """Return the outcomes of retrieval with `top_k` weighted adapters, ties by id."""
        similarities, log_weights = self.scores.similarities, self.scores.log_weights
        order = ranking(similarities)
        ranks = (order == self.truth[:, None]).argmax(axis=1) + 1
        losses = self.losses()
        outcomes = []
        for row, best in enumerate(order[:, :top_k]):
            weights = weigh(similarities[row, best].tolist(), weighting, temperature, log_weights[row, best].tolist())
            retrieved = tuple(self.ids[column] for column in best)
            outcomes.append(
                Outcome(self.ids[self.truth[row]], int(ranks[row]), retrieved, tuple(weights), float(losses[row]))
            )
        return outcomes

    def losses(self) -> Float64Array:
        """Return -log of the probability of the right adapter among all, [queries]."""
        log_weights = self.scores.log_weights
        shifted = log_weights - log_weights.max(axis=1, keepdims=True)
        return np.asarray(np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(self.truth)), self.truth])

    def hits(self) -> list[bool]:
        """Return whether the right adapter of each query is first, ties by id."""
        return [bool(hit) for hit in ranking(self.scores.similarities)[:, 0] == self.truth]

    def compared_with(self, other: Trial) -> Difference:
        """Return by how much the share of hits exceeds that of another trial on the same queries."""
        return paired_difference(other.hits(), self.hits(), self.truth.tolist())

    def best_temperature(self) -> float:
        """Return the temperature T at which softmax weights over all adapters make the right one most likely."""
        return fitted_temperature(self.scores.similarities, self.truth)


def leave_one_out(strategy: RetrievalStrategy, examples: ExampleSet, kind: str = "") -> Trial:
    """Return the trial of at most _MAX_QUERIES examples whose adapters have other examples.

    An example that another adapter has too is left out there as well. With `kind`, only examples of adapters of that
    kind are asked, and only among those. Raises InvalidArgumentError if there are none, or only one adapter.
    """
    columns = _columns(examples, kind)
    twins = examples.twins
    rows = examples.testable()
    rows = rows[np.isin(examples.owners[rows], columns)]
    rows = _evenly(rows, _MAX_REFITTED_QUERIES if any(int(row) in twins for row in rows) else _MAX_QUERIES)
    if len(columns) < 2 or not len(rows):
        raise InvalidArgumentError("", "nothing to tell apart; leave-one-out needs two adapters with two examples each")
    similarities = Similarities(strategy, examples, kind)
    scores = similarities.left_out_scores(rows)
    contaminated = [index for index, row in enumerate(rows) if int(row) in twins]
    for index in contaminated:
        row = int(rows[index])
        left_out = np.append(twins[row], row)
        scores.set_row(index, similarities.scores_without(left_out, examples.vectors[[row]]))
    ids = tuple(examples.ids[column] for column in columns)
    return Trial(ids, scores.of_adapters(columns), _positions(examples.owners[rows], columns), len(contaminated))


def few_examples(
    strategies: Sequence[RetrievalStrategy], examples: ExampleSet, count: int, seed: int, kind: str = ""
) -> dict[RetrievalStrategy, Trial]:
    """Return trials over ten random draws: `count` examples per adapter are stored and all others are queries.

    All strategies see the same draws. A query that is stored under another adapter is not asked. With `kind`, only
    examples of adapters of that kind are asked, and only among those. Raises InvalidArgumentError if no adapter has
    more than `count` examples.
    """
    if count < 1 or not (examples.counts > count).any() or len(examples.ids) < 2:
        most = int(examples.counts.max(initial=0))
        raise InvalidArgumentError("few", f"must be at least 1 and below {most}, the most examples an adapter has")
    scores: dict[RetrievalStrategy, list[Scores]] = {strategy: [] for strategy in strategies}
    truth: list[IntArray] = []
    columns = _columns(examples, kind)
    for stored_rows, drawn in _draws(examples, count, seed):
        query_rows = _askable(examples, drawn, stored_rows, columns)
        stored = ExampleSet(examples.ids, examples.kinds, examples.vectors[stored_rows], examples.owners[stored_rows])
        truth.append(_positions(examples.owners[query_rows], columns))
        for strategy in strategies:
            found = Similarities(strategy, stored, kind).scores(examples.vectors[query_rows])
            scores[strategy].append(found.of_adapters(columns))
    ids = tuple(examples.ids[column] for column in columns)
    return {
        strategy: Trial(ids, Scores.concatenated(draws), np.concatenate(truth)) for strategy, draws in scores.items()
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


def _columns(examples: ExampleSet, kind: str) -> list[int]:
    """Return the adapters of a kind; "" is all of them."""
    return [index for index, own in enumerate(examples.kinds) if kind in ("", own)]


def _positions(owners: IntArray, columns: Sequence[int]) -> IntArray:
    """Return where each owner is in ascending `columns`."""
    return np.searchsorted(np.array(columns), owners).astype(np.int64)


def _askable(examples: ExampleSet, rows: IntArray, stored: IntArray, columns: Sequence[int]) -> IntArray:
    """Return the rows of adapters in `columns` whose vectors no other adapter has stored."""
    is_stored = np.zeros(len(examples.owners), bool)
    is_stored[stored] = True
    twins = examples.twins
    clean = [row for row in rows.tolist() if row not in twins or not is_stored[twins[row]].any()]
    kept = np.array(clean, np.int64)
    return kept[np.isin(examples.owners[kept], columns)]


def _evenly(rows: IntArray, at_most: int) -> IntArray:
    return rows if len(rows) <= at_most else rows[np.arange(at_most) * len(rows) // at_most]
