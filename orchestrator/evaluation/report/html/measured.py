"""The sections of the page about what was measured beside scores: weights, seconds, tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from orchestrator.evaluation.records import Record
from orchestrator.evaluation.report.formatting import UNSCORED_TEXT, milliseconds
from orchestrator.evaluation.report.html.charts import Bar, Stack, legend, parts, shares
from orchestrator.evaluation.report.html.markup import Markup, element, section, table
from orchestrator.evaluation.report.html.measures import PHASES, Measures, measures, percentile_95


def measured_sections(strategies: Sequence[str], records: Iterable[Record]) -> list[Markup | None]:
    """Return the sections that the records (each key once) can fill; a strategy's colour is its place among all."""
    found = measures(records)
    measured = {strategy: found[strategy] for strategy in strategies if strategy in found}
    colours = {strategy: colour for colour, strategy in enumerate(strategies)}
    return [_weights(measured, colours), _latency(measured, colours), _cost(measured)]


def _weights(measured: Mapping[str, Measures], colours: Mapping[str, int]) -> Markup | None:
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
        *shares(groups, "Share of weights in each tenth"),
        element("p", "How many of the weights applied lie in each tenth of [0, 1].", class_="note"),
    )


def _latency(measured: Mapping[str, Measures], colours: Mapping[str, int]) -> Markup | None:
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
        parts(charted, "Mean seconds of each phase"),
        table(("strategy, ms", "whole answer", "95th percentile", *PHASES), rows),
        element("p", f"Means over the samples in which a phase was measured. {note}", class_="note"),
    )


def _cost(measured: Mapping[str, Measures]) -> Markup | None:
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
