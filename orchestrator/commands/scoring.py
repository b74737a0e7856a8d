"""`loraretriever evaluate score|compare`: results that exist, as files or as the records of a job."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from infra.contract.errors import InvalidArgumentError
from orchestrator.commands import console
from orchestrator.commands.evaluated import complete_strategies
from orchestrator.commands.gate import Gate, Measured, gate_of
from orchestrator.commands.job_options import (
    FailUnder,
    MaxFailed,
    MetricOption,
    PointTolerance,
    Strategy,
    Threshold,
)
from orchestrator.commands.judging import (
    CACHE,
    JudgeCache,
    JudgeConcurrency,
    JudgeModel,
    JudgePromptFile,
    JudgeRate,
    JudgeUrl,
    endpoint_of,
    judging,
    read_prompt,
)
from orchestrator.commands.sources import result_files, results_of
from orchestrator.commands.targets import AsJson, OrchestratorTarget
from orchestrator.evaluation.actions import POINT_TOLERANCE_PX
from orchestrator.evaluation.compare import compare
from orchestrator.evaluation.judge.client import ChatEndpoint
from orchestrator.evaluation.judge.judge import Judgement, JudgePrompt, judge
from orchestrator.evaluation.metrics.legacy import LEGACY_THRESHOLD
from orchestrator.evaluation.metrics.text import mean_score
from orchestrator.evaluation.report.matrix import interval_text
from orchestrator.evaluation.report.summary import ScoringOptions
from orchestrator.evaluation.result_files import (
    FileScore,
    MetricName,
    Results,
    score_of_answers,
    score_results,
)

Sources = Annotated[
    list[str], typer.Argument(help="Records of a job (its id, folder or records.jsonl), or result files of the study.")
]
Source = Annotated[str, typer.Argument(help="A job's id, its folder, or a JSONL file of results.")]


def score(
    *,
    sources: Sources,
    metric: MetricOption = MetricName.ACTION,
    threshold: Threshold = None,
    point_tolerance: PointTolerance = None,
    strategy: Strategy = None,
    judge_url: JudgeUrl = "",
    judge_model: JudgeModel = "",
    judge_prompt: JudgePromptFile = None,
    judge_rate: JudgeRate = None,
    judge_concurrency: JudgeConcurrency = 8,
    judge_cache: JudgeCache = CACHE,
    fail_under: FailUnder = None,
    max_failed: MaxFailed = None,
    orchestrator_target: OrchestratorTarget = "",
    as_json: AsJson = False,
) -> None:
    """Score results that exist, without any model or server (but for --judge, and for jobs named by id)."""
    gate = gate_of(fail_under, max_failed)
    endpoint = None
    if judge_url:
        if metric is not MetricName.ACTION or (threshold, point_tolerance) != (None, None):
            raise InvalidArgumentError("metric", "a judge grades whole answers; leave --metric and its options out")
        endpoint = endpoint_of(judge_url, judge_model, judge_rate, judge_concurrency)
    elif judge_model or judge_prompt is not None or judge_rate is not None:
        raise InvalidArgumentError("judge", "the options of a judge say nothing without --judge")
    else:
        options = scoring_options(metric, threshold, point_tolerance)
    prompt = JudgePrompt(read_prompt(judge_prompt))
    scored: list[tuple[str, FileScore]] = []
    found: dict[str, Measured] = {}
    costs: list[dict[str, Any]] = []
    for source in sources:
        results = results_of(source, orchestrator_target).of_strategy(strategy)
        if endpoint is not None:
            judgement = _judged(results, endpoint, prompt, judge_cache)
            graded = score_of_answers(mean_score(judgement.scores), results, f"judge {judge_model}")
            scored.append((source, graded))
            found[source] = Measured(graded.step_accuracy, judgement.unscored.total(), len(results.answers))
            costs.append(_cost(judgement))
        else:
            by_metric = _score(results, metric, options)
            scored.append((source, by_metric))
            found[source] = _measured(results, by_metric)
    print_scores(scored, costs, as_json)
    gate.check_scores(found)


def score_files(given: Sequence[str], gate: Gate, options: ScoringOptions, as_json: bool) -> None:
    """Score files of results by the metrics of actions, and by the gate's; exit with 1 where that is too low.

    `given` are files, folders or patterns, each of which may be NAME=FILE.
    """
    if gate.only:
        raise InvalidArgumentError("fail_on", "files of results are each of one strategy; leave --fail-on out")
    results = {name: results_of(path).of_strategy() for each in given for name, path in result_files(each)}
    decisive = MetricName(gate.metric.value)
    metrics = dict.fromkeys([MetricName.ACTION, MetricName.LEGACY, decisive])
    scored = [(name, _score(found, metric, options)) for name, found in results.items() for metric in metrics]
    print_scores(scored, [], as_json)
    gate.check_scores(
        {name: _measured(results[name], score) for name, score in scored if score.metric == decisive.value}
    )


def scoring_options(
    metric: MetricName | None, threshold: float | None, point_tolerance_px: float | None
) -> ScoringOptions:
    """Return what the options leave open, filled in; `metric` None: each option has its use.

    Raises InvalidArgumentError for an option that the metric knows nothing of.
    """
    for option, value, use in (
        ("threshold", threshold, MetricName.LEGACY),
        ("point_tolerance", point_tolerance_px, MetricName.ACTION),
    ):
        if value is not None and metric not in (None, use):
            raise InvalidArgumentError(option, f"says nothing with --metric {metric}; it is of --metric {use}")
    return ScoringOptions(
        LEGACY_THRESHOLD if threshold is None else threshold,
        POINT_TOLERANCE_PX if point_tolerance_px is None else point_tolerance_px,
    )


def compare_results(
    *,
    first: Source,
    second: Source,
    metric: MetricOption = MetricName.ACTION,
    threshold: Threshold = None,
    point_tolerance: PointTolerance = None,
    strategy: Strategy = None,
    against: Annotated[
        str | None,
        typer.Option(help="Of the second (default: as --strategy).", autocompletion=complete_strategies),
    ] = None,
    orchestrator_target: OrchestratorTarget = "",
    as_json: AsJson = False,
) -> None:
    """Compare two sets of results question by question: paired differences with their 95 % intervals."""
    options = scoring_options(metric, threshold, point_tolerance)
    left, right = (results_of(source, orchestrator_target) for source in (first, second))
    found = compare(
        left,
        right,
        metric,
        options.legacy_threshold,
        point_tolerance_px=options.point_tolerance_px,
        strategy=strategy,
        against=against,
    )
    if as_json:
        console.print_json(found)
        return
    scores = ("metric", "first, %", "second, %", "second - first")
    table = _table("first", "second", *scores, "pairs", "left out", "episodes", names=2)
    names = distinct_names([left.source, right.source])
    for each in found:
        table.add_row(
            _named(names[0], left, each.first),
            _named(names[1], right, each.second),
            each.metric,
            interval_text(each.first_score),
            interval_text(each.second_score),
            interval_text(each.difference, signed=True),
            str(each.difference.count),
            str(each.left_out),
            str(each.difference.clusters),
        )
    console.results().print(table)
    for note in dict.fromkeys(note for each in found for note in each.notes):
        console.note(note)


def print_scores(scored: list[tuple[str, FileScore]], costs: list[dict[str, Any]], as_json: bool) -> None:
    """Print the scores: with `as_json` an object for one, a list for several; `costs` are what judges took."""
    if as_json:
        extra = costs or [{}] * len(scored)
        objects = [{"file": file, **found.to_json(), **more} for (file, found), more in zip(scored, extra, strict=True)]
        console.print_json(objects[0] if len(objects) == 1 else objects)
        return
    with_parts = any(found.metric == MetricName.ACTION for _, found in scored)
    parts = ("type right", "argument right") if with_parts else ()
    counts = ("steps", "episodes", "failed")
    table = _table("file", "metric", "steps right", "floor", *parts, "episodes right", "floor", *counts, names=1)
    for name, (_, found) in zip(distinct_names([file for file, _ in scored]), scored, strict=True):
        table.add_row(name, found.metric, *_cells(found, with_parts=with_parts))
    console.results().print(table)
    for cost in costs:
        unscored = "".join(f"; unscored: {count} ({reason})" for reason, count in cost["judge_unscored"].items())
        console.note(
            f"judge: {cost['judge_calls']} calls, {cost['judge_cached']} replies known already, "
            f"{cost['judge_prompt_tokens']} + {cost['judge_completion_tokens']} tokens{unscored}"
        )


def _score(results: Results, metric: MetricName, options: ScoringOptions) -> FileScore:
    return score_results(results, metric, options.legacy_threshold, options.point_tolerance_px)


def _measured(results: Results, score: FileScore) -> Measured:
    return Measured(score.step_accuracy, results.failed_count, len(results.records) + len(results.rows))


def distinct_names(sources: Sequence[str]) -> list[str]:
    """Return paths without the folders that all of them are in; what is no path stays as it is."""
    parts = [source.rstrip("/").split("/") for source in sources]
    shared = 0
    while len(parts) > 1 and all(len(one) > shared + 1 and one[shared] == parts[0][shared] for one in parts):
        shared += 1
    return ["/".join(one[shared:]) for one in parts]


def _named(name: str, results: Results, label: str) -> str:
    return name if label == results.source else f"{name}: {label}"


def _table(*columns: str, names: int) -> Table:
    """Return a table whose first columns hold names, never cut but folded."""
    table = Table()
    for index, column in enumerate(columns):
        table.add_column(
            column, overflow="fold" if index < names else "ellipsis", min_width=12 if index < names else None
        )
    return table


def _judged(results: Results, endpoint: ChatEndpoint, prompt: JudgePrompt, cache: Path) -> Judgement:
    answers = results.answers
    with judging(len(answers)) as advance:
        return asyncio.run(judge(answers, endpoint, prompt, cache, advance))


def _cost(judgement: Judgement) -> dict[str, Any]:
    return {
        "judge_calls": judgement.calls,
        "judge_cached": judgement.cached,
        "judge_prompt_tokens": judgement.prompt_tokens,
        "judge_completion_tokens": judgement.completion_tokens,
        "judge_unscored": dict(judgement.unscored),
    }


def _cells(found: FileScore, *, with_parts: bool) -> tuple[str, ...]:
    parts = (_percent(found.action_type), _percent(found.argument)) if with_parts else ()
    return (
        _percent(found.step_accuracy, found.step_standard_error),
        _percent(found.floor),
        *parts,
        _percent(found.episode_accuracy, found.episode_standard_error),
        _percent(found.episode_floor),
        str(found.step_count),
        str(found.episode_count),
        str(found.failed_count),
    )


def _percent(value: float | None, error: float | None = None) -> str:
    if value is None:
        return "unscored"
    return f"{value:.1%}" + (f" ± {error:.1%}" if error else "")
