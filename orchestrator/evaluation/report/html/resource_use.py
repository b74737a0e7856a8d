"""Sections of the page on what answers used: adapter weights, seconds per phase, and tokens."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, quantiles

from orchestrator.evaluation.records import Record
from orchestrator.evaluation.report.formatting import UNSCORED_TEXT, milliseconds
from orchestrator.evaluation.report.html.charts import Bar, Stack, legend, share_charts, stacked_bar_chart
from orchestrator.evaluation.report.html.markup import Markup, element, section, table

_PHASES = ("embed", "search", "queue", "prefill", "decode")
_TOKEN_COUNTS = ("prompt_tokens", "image_tokens", "completion_tokens")
_WEIGHT_BINS = 10


@dataclass
class StrategyUsage:
    """What the answered samples of one strategy used.

    Attributes:
        total_s: seconds of each answer, end to end.
        phase_s: seconds of each phase, over the samples in which it was measured.
        generation_s: seconds of prefill and decoding together.
        tokens: token counts of each answer, by field of Usage.
        weights: weights of all adapters applied.
    """

    total_s: list[float] = field(default_factory=list)
    phase_s: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    generation_s: list[float] = field(default_factory=list)
    tokens: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    weights: list[float] = field(default_factory=list)

    def add(self, record: Record) -> None:
        """Add an answered sample."""
        self.weights.extend(adapter.weight for adapter in record.applied)
        if record.usage is not None:
            for name in _TOKEN_COUNTS:
                self.tokens[name].append(getattr(record.usage, name))
        if record.timings is None:
            return
        self.total_s.append(record.timings.total_s)
        for phase in _PHASES:
            seconds = getattr(record.timings, f"{phase}_s")
            if seconds is not None:
                self.phase_s[phase].append(seconds)
        if record.timings.prefill_s is not None and record.timings.decode_s is not None:
            self.generation_s.append(record.timings.prefill_s + record.timings.decode_s)

    def mean_phase_s(self, phase: str) -> float | None:
        """Return the mean seconds of a phase over the samples in which it was measured."""
        return _mean(self.phase_s[phase])

    def weight_counts(self) -> list[int]:
        """Return how many weights are in each tenth of [0, 1]; larger weights count in the last."""
        counts = [0] * _WEIGHT_BINS
        for weight in self.weights:
            counts[min(int(weight * _WEIGHT_BINS), _WEIGHT_BINS - 1)] += 1
        return counts


def strategy_usage(records: Iterable[Record]) -> dict[str, StrategyUsage]:
    """Return the usage of each strategy with answered samples; failed samples are left out."""
    usage: defaultdict[str, StrategyUsage] = defaultdict(StrategyUsage)
    for record in records:
        if record.error is None:
            usage[record.sample.strategy.label].add(record)
    return dict(usage)


def percentile_95(values: Sequence[float]) -> float | None:
    """Return the 95th percentile; None: there are no values."""
    if not values:
        return None
    return values[0] if len(values) == 1 else quantiles(values, n=20, method="inclusive")[-1]


def resource_use_sections(strategies: Sequence[str], records: Iterable[Record]) -> list[Markup | None]:
    """Return the sections; None: there is no data for one. `records` have unique keys.

    A strategy's colour is its index in `strategies`, as in the other charts of the page.
    """
    by_strategy = strategy_usage(records)
    usage = {strategy: by_strategy[strategy] for strategy in strategies if strategy in by_strategy}
    colours = {strategy: colour for colour, strategy in enumerate(strategies)}
    return [_weights(usage, colours), _latency(usage, colours), _tokens(usage)]


def _weights(usage: Mapping[str, StrategyUsage], colours: Mapping[str, int]) -> Markup | None:
    groups: dict[str, list[Bar]] = {}
    for strategy, used in usage.items():
        if not used.weights:
            continue
        groups[f"{strategy} ({len(used.weights):,} weights)"] = [
            Bar(
                f"{index / 10:.1f} to {(index + 1) / 10:.1f}",
                count / len(used.weights),
                text=f"{count:,}",
                colour=colours[strategy],
            )
            for index, count in enumerate(used.weight_counts())
            if count
        ]
    if not groups:
        return None
    return section(
        "Weights of the adapters applied",
        *share_charts(groups, "Share of weights in each tenth"),
        element("p", "Number of applied weights in each tenth of [0, 1].", class_="note"),
    )


def _latency(usage: Mapping[str, StrategyUsage], colours: Mapping[str, int]) -> Markup | None:
    timed = {strategy: used for strategy, used in usage.items() if used.total_s}
    if not timed:
        return None
    stacks = [
        Stack(strategy, colours[strategy], [used.mean_phase_s(phase) or 0.0 for phase in _PHASES])
        for strategy, used in timed.items()
    ]
    rows = [
        (
            strategy,
            milliseconds(_mean(used.total_s)),
            milliseconds(percentile_95(used.total_s)),
            *(milliseconds(used.mean_phase_s(phase)) for phase in _PHASES),
        )
        for strategy, used in timed.items()
    ]
    absent = [phase for phase in _PHASES if not any(used.phase_s[phase] for used in timed.values())]
    note = (
        "Means over the samples in which a phase was measured. A retrieval shared by several strategies is measured "
        "for one of them only."
    )
    if absent:
        note += f" Not recorded in this job: {', '.join(absent)}."
    return section(
        "Where the time goes",
        legend(_PHASES),
        stacked_bar_chart(stacks, "Mean seconds of each phase"),
        table(("strategy, ms", "whole answer", "95th percentile", *_PHASES), rows),
        element("p", note, class_="note"),
    )


def _tokens(usage: Mapping[str, StrategyUsage]) -> Markup | None:
    rows = [
        (
            strategy,
            *(_mean_text(used.tokens[name]) for name in _TOKEN_COUNTS),
            milliseconds(_mean(used.generation_s)),
        )
        for strategy, used in usage.items()
        if used.tokens or used.generation_s
    ]
    if not rows:
        return None
    columns = ("mean of a sample", "tokens in", "of images", "tokens out", "generation, ms")
    return section("Cost of a sample", table(columns, rows))


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _mean_text(values: Sequence[int]) -> str:
    return f"{fmean(values):,.1f}" if values else UNSCORED_TEXT
