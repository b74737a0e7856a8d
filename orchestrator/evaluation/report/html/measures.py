"""What records say beyond scores: seconds, tokens and weights, by strategy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, quantiles

from orchestrator.evaluation.records import Record

PHASES = ("embed", "search", "queue", "prefill", "decode")
WEIGHT_BINS = 10


@dataclass(frozen=True)
class Measures:
    """Of one strategy's answered samples: seconds of each, by phase ("total" too), tokens of each, applied weights."""

    seconds: dict[str, list[float]]
    tokens: dict[str, list[int]]
    generation_s: list[float]
    weights: list[float]

    def mean_s(self, phase: str) -> float | None:
        """Return the mean seconds of a phase over the samples in which it was measured."""
        return fmean(self.seconds[phase]) if self.seconds.get(phase) else None

    def weight_counts(self) -> list[int]:
        """Return how many weights are in each tenth of [0, 1]; those above one count in the last."""
        counts = [0] * WEIGHT_BINS
        for weight in self.weights:
            counts[min(int(weight * WEIGHT_BINS), WEIGHT_BINS - 1)] += 1
        return counts


def measures(records: Iterable[Record]) -> dict[str, Measures]:
    """Return the measures of each strategy that answered anything; failed samples are left out."""
    by_strategy: dict[str, Measures] = {}
    for record in records:
        if record.error is not None:
            continue
        of = by_strategy.setdefault(
            record.sample.strategy.label, Measures(defaultdict(list), defaultdict(list), [], [])
        )
        of.weights.extend(adapter.weight for adapter in record.applied)
        if record.usage is not None:
            for name in ("prompt_tokens", "image_tokens", "completion_tokens"):
                of.tokens[name].append(getattr(record.usage, name))
        if record.timings is None:
            continue
        for phase in ("total", *PHASES):
            seconds = getattr(record.timings, f"{phase}_s")
            if seconds is not None:
                of.seconds[phase].append(seconds)
        if record.timings.prefill_s is not None and record.timings.decode_s is not None:
            of.generation_s.append(record.timings.prefill_s + record.timings.decode_s)
    return by_strategy


def percentile_95(values: Sequence[float]) -> float | None:
    """Return the value that 95 % are below, None of no values."""
    if not values:
        return None
    return values[0] if len(values) == 1 else quantiles(values, n=20, method="inclusive")[-1]
