"""Sections of the page on what answers used: adapter weights, seconds per phase, and tokens."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, quantiles

from orchestrator.evaluation.records import Record
from orchestrator.evaluation.report.formatting import UNSCORED_TEXT, milliseconds
from orchestrator.evaluation.report.html.charts import Bar, Stack, legend, share_charts, stacked_bar_chart
from orchestrator.evaluation.report.html.markup import Markup, element, section, table

PHASES = ("embed", "search", "queue", "prefill", "decode")
WEIGHT_BINS = 10


@dataclass(frozen=True)
class StrategyUsage:
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


def strategy_usage(records: Iterable[Record]) -> dict[str, StrategyUsage]:
    """Return the measures of each strategy that answered anything; failed samples are left out."""
    by_strategy: dict[str, StrategyUsage] = {}
    for record in records:
        if record.error is not None:
            continue
        of = by_strategy.setdefault(
            record.sample.strategy.label, StrategyUsage(defaultdict(list), defaultdict(list), [], [])
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


def resource_use_sections(strategies: Sequence[str], records: Iterable[Record]) -> list[Markup | None]:
    """Return the sections that the records (each key once) can fill; a strategy's colour is its place among all."""
    found = strategy_usage(records)
    measured = {strategy: found[strategy] for strategy in strategies if strategy in found}
    colours = {strategy: colour for colour, strategy in enumerate(strategies)}
    return [_weights(measured, colours), _latency(measured, colours), _cost(measured)]


def _weights(measured: Mapping[str, StrategyUsage], colours: Mapping[str, int]) -> Markup | None:
    groups: dict[str, list[Bar]] = {}
    for strategy, of in measured.items():
        if not of.weights:
            continue
        counts = of.weight_counts()
        groups[f"{strategy} ({len(of.weights):,} weights)"] = [
            Bar(
                f"{index / 10:.1f} to {(index + 1) / 10:.1f}",
                count / len(of.weights),
                text=f"{count:,}",
                colour=colours[strategy],
            )
            for index, count in enumerate(counts)
            if count
        ]
    if not groups:
        return None
    return section(
        "Weights of the adapters applied",
        *share_charts(groups, "Share of weights in each tenth"),
        element("p", "How many of the weights applied lie in each tenth of [0, 1].", class_="note"),
    )


def _latency(measured: Mapping[str, StrategyUsage], colours: Mapping[str, int]) -> Markup | None:
    timed = {strategy: of for strategy, of in measured.items() if of.seconds.get("total")}
    if not timed:
        return None
    charted = [
        Stack(strategy, colours[strategy], [of.mean_s(phase) or 0.0 for phase in PHASES])
        for strategy, of in timed.items()
    ]
    rows = [
        (
            strategy,
            milliseconds(of.mean_s("total")),
            milliseconds(percentile_95(of.seconds["total"])),
            *(milliseconds(of.mean_s(phase)) for phase in PHASES),
        )
        for strategy, of in timed.items()
    ]
    absent = [phase for phase in PHASES if not any(of.seconds.get(phase) for of in timed.values())]
    note = "A phase that another strategy had paid for already, as retrieval shared by strategies, is not in its mean."
    if absent:
        note += f" Not recorded in this job: {', '.join(absent)}."
    return section(
        "Where the time goes",
        legend(PHASES),
        stacked_bar_chart(charted, "Mean seconds of each phase"),
        table(("strategy, ms", "whole answer", "95th percentile", *PHASES), rows),
        element("p", f"Means over the samples in which a phase was measured. {note}", class_="note"),
    )


def _cost(measured: Mapping[str, StrategyUsage]) -> Markup | None:
    rows = [
        (
            strategy,
            *(_mean(of.tokens.get(name, [])) for name in ("prompt_tokens", "image_tokens", "completion_tokens")),
            milliseconds(fmean(of.generation_s) if of.generation_s else None),
        )
        for strategy, of in measured.items()
        if of.tokens or of.generation_s
    ]
    if not rows:
        return None
    columns = ("mean of a sample", "tokens in", "of images", "tokens out", "generation, ms")
    return section("Cost of a sample", table(columns, rows))


def _mean(values: Sequence[int]) -> str:
    return f"{fmean(values):,.1f}" if values else UNSCORED_TEXT
