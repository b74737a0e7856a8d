"""How well a request for an adapter that nobody registered is told from the others."""

from __future__ import annotations

from statistics import fmean

import numpy as np

from infra.contract.retrieval import RetrievalStrategy
from retrieval_service.strategies.examples import ExampleSet, Float64Array
from retrieval_service.strategies.scale import Similarities

_MAX_REMOVED = 64  # each removal fits the strategy anew
_MAX_KNOWN = 256  # known requests per removed adapter


def open_set_auroc(strategy: RetrievalStrategy, examples: ExampleSet, kind: str = "") -> float | None:
    """Return the probability that a known request fits better than an unknown one; None: too few adapters.

    Each adapter is removed once (of many adapters, 64 evenly chosen ones). Its examples are the unknown requests; the
    known ones are examples of the others, each left out of its adapter. The mean over the removed adapters is returned.
    """
    adapters = [index for index, own in enumerate(examples.kinds) if kind in ("", own)]
    if len(adapters) < 3:
        return None
    if len(adapters) > _MAX_REMOVED:
        adapters = [adapters[index * len(adapters) // _MAX_REMOVED] for index in range(_MAX_REMOVED)]
    shares = [_share(strategy, examples, adapter, kind) for adapter in adapters]
    found = [share for share in shares if share is not None]
    return fmean(found) if found else None


def _share(strategy: RetrievalStrategy, examples: ExampleSet, removed: int, kind: str) -> float | None:
    rest = examples.without_adapter(removed)
    columns = [index for index, own in enumerate(rest.kinds) if kind in ("", own)]
    rows = rest.testable(_MAX_KNOWN)
    rows = rows[np.isin(rest.owners[rows], columns)]
    if not len(rows):
        return None
    similarities = Similarities(strategy, rest, kind)
    unknown = similarities.scores(examples.vectors[examples.rows_of(removed)])
    known = similarities.left_out_scores(rows)
    return auroc(*(scores.of_adapters(columns).evidence.max(axis=1) for scores in (known, unknown)))


def auroc(positive: Float64Array, negative: Float64Array) -> float:
    """Return the share of pairs in which the positive is larger, ties as a half (Mann and Whitney)."""
    values, inverse, counts = np.unique(np.concatenate([positive, negative]), return_inverse=True, return_counts=True)
    del values
    ranks = np.cumsum(counts) - (counts - 1) / 2
    own = ranks[inverse[: len(positive)]].sum() - len(positive) * (len(positive) + 1) / 2
    return float(own / (len(positive) * len(negative)))
