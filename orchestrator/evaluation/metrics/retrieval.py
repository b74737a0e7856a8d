"""Retrieval accuracy: was the adapter trained for the data retrieved?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.evaluation.metrics.uncertainty import UNSCORED, Estimate, clustered_mean

NOTHING = "(none)"
"""Key of the confusion counts for samples that retrieved no adapter."""


@dataclass(frozen=True)
class RankedAdapters:
    """The adapters that one sample retrieved, most similar first, and the true adapter. No adapter counts as wrong."""

    cluster: str
    true_adapter: str
    adapters: tuple[str, ...]

    @property
    def rank(self) -> int | None:
        """The true adapter's rank, from 1; None: it was not retrieved."""
        return self.adapters.index(self.true_adapter) + 1 if self.true_adapter in self.adapters else None


@dataclass(frozen=True)
class RetrievalScore:
    """Shares of samples with the true adapter at rank 1 and at rank 1 to 3; mean of 1 / rank (0 if absent)."""

    at_1: Estimate
    at_3: Estimate
    mean_reciprocal_rank: Estimate


def confusion(samples: Sequence[RankedAdapters]) -> dict[str, dict[str, int]]:
    """Return how often each adapter came first, by true adapter; NOTHING if none was similar enough."""
    counts: dict[str, dict[str, int]] = {}
    for sample in samples:
        first = sample.adapters[0] if sample.adapters else NOTHING
        row = counts.setdefault(sample.true_adapter, {})
        row[first] = row.get(first, 0) + 1
    return {true: dict(sorted(row.items())) for true, row in sorted(counts.items())}


RETRIEVAL_UNSCORED = RetrievalScore(UNSCORED, UNSCORED, UNSCORED)


def score_retrieval(samples: Sequence[RankedAdapters], top_k: int | None) -> RetrievalScore:
    """Score retrieval, with standard errors clustered by episode.

    `top_k` is the number of adapters requested; None: the length of the longest result. With top_k < 3 the share at 3
    is unscored. The reciprocal rank is cut at top_k: an adapter beyond it counts as absent.
    """
    depth = max((len(sample.adapters) for sample in samples), default=0) if top_k is None else top_k
    ranks = [sample.rank for sample in samples]
    clusters = [sample.cluster for sample in samples]
    return RetrievalScore(
        at_1=clustered_mean([float(rank == 1) for rank in ranks], clusters),
        at_3=UNSCORED
        if depth < 3
        else clustered_mean([float(rank is not None and rank <= 3) for rank in ranks], clusters),
        mean_reciprocal_rank=clustered_mean([1 / rank if rank else 0.0 for rank in ranks], clusters),
    )
