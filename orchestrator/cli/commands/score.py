"""`loraretriever evaluate score|compare`: results that exist, as files or as the records of a job."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from infra.contract.errors import InvalidArgumentError
from orchestrator.cli.ci_gate import Gate, Measured, gate_of
from orchestrator.cli.commands.judge import (
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
from orchestrator.cli.dataset_args import complete_strategies
from orchestrator.cli.options import (
    FailUnder,
    MaxFailed,
    MetricOption,
    PointTolerance,
    Strategy,
    Threshold,
)
from orchestrator.cli.result_sources import result_files, results_of, sources_in
from orchestrator.cli.score_tables import Scored, print_compared, print_scores
from orchestrator.cli.targets import AsJson, OrchestratorTarget
from orchestrator.evaluation.actions import POINT_TOLERANCE_PX, is_actions
from orchestrator.evaluation.compare import compare, headline_metric
from orchestrator.evaluation.judge.chat_client import ChatEndpoint
from orchestrator.evaluation.judge.grading import Judgement, JudgePrompt, grade_answers
from orchestrator.evaluation.metrics.legacy import LEGACY_THRESHOLD
from orchestrator.evaluation.metrics.text import mean_score
from orchestrator.evaluation.report.summary import ScoringOptions
from orchestrator.evaluation.result_files import (
    MetricName,
    Results,
    file_score_of_answers,
    score_results,
)

Sources = Annotated[
    list[str],
    typer.Argument(
        help="Records of a job (its id, folder or records.jsonl), or result files of the study, or folders of them."
    ),
]
Source = Annotated[str, typer.Argument(help="A job's id, its folder, or a JSONL file of results.")]


def score(
    *,
    sources: Sources,
    metric: MetricOption = None,
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
        if (metric, threshold, point_tolerance) != (None, None, None):
            raise InvalidArgumentError("metric", "a judge grades whole answers; leave --metric and its options out")
        endpoint = endpoint_of(judge_url, judge_model, judge_rate, judge_concurrency)
    elif judge_model or judge_prompt is not None or judge_rate is not None:
        raise InvalidArgumentError("judge", "the options of a judge say nothing without --judge")
    else:
        scoring_options(metric or MetricName.ACTION, threshold, point_tolerance)
    prompt = JudgePrompt(read_prompt(judge_prompt))
    scored: list[Scored] = []
    found: dict[str, Measured] = {}
    for source, label, results in _strategies_in(sources, strategy, orchestrator_target):
        name = f"{source}: {label}" if label else source
        if endpoint is not None:
            judgement = _judged(results, endpoint, prompt, judge_cache)
            graded = file_score_of_answers(mean_score(judgement.scores), results, f"judge {judge_model}")
            scored.append(Scored(source, label, graded, _cost(judgement)))
            found[name] = Measured(graded.step_accuracy, judgement.unscored.total(), len(results.answers))
        else:
            chosen = metric or results.headline_metric
            made = _score(source, label, results, chosen, scoring_options(chosen, threshold, point_tolerance))
            scored.append(made)
            found[name] = _measured(results, made)
    print_scores(scored, as_json)
    gate.check_scores(found)


def score_files(given: Sequence[str], gate: Gate, options: ScoringOptions, as_json: bool) -> None:
    """Score files of results by their headline's metric, the legacy one and the gate's; exit with 1 below the gate.

    `given` are files, folders or patterns, each of which may be NAME=FILE.
    """
    if gate.only:
        raise InvalidArgumentError("fail_on", "of results --strategy of 'evaluate score' chooses; leave --fail-on out")
    scored: list[Scored] = []
    found: dict[str, Measured] = {}
    for name, path in (file for each in given for file in result_files(each)):
        for label, results in results_of(path).by_strategy().items():
            decisive = MetricName(gate.metric.value) if gate.metric else results.headline_metric
            for metric in dict.fromkeys([results.headline_metric, MetricName.LEGACY, decisive]):
                made = _score(name, label, results, metric, options)
                scored.append(made)
                if metric is decisive:
                    found[f"{name}: {label}" if label else name] = _measured(results, made)
    print_scores(scored, as_json)
    gate.check_scores(found)


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
    metric: MetricOption = None,
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
    scoring_options(metric or MetricName.ACTION, threshold, point_tolerance)
    left, right = (results_of(source, orchestrator_target) for source in (first, second))
    chosen = metric or headline_metric(left, right)
    options = scoring_options(chosen, threshold, point_tolerance)
    found = compare(
        left,
        right,
        chosen,
        options.legacy_threshold,
        point_tolerance_px=options.point_tolerance_px,
        strategy=strategy,
        against=against,
    )
    print_compared(found, (left.source, right.source), as_json)


def _strategies_in(
    given: Sequence[str], strategy: str | None, orchestrator_target: str
) -> Iterator[tuple[str, str | None, Results]]:
    """Yield every source with its results: those of `strategy`, or of each that it has (None: of the only one)."""
    for source in (one for each in given for one in sources_in(each)):
        results = results_of(source, orchestrator_target)
        if strategy is not None:
            yield source, None, results.of_strategy(strategy)
            continue
        for label, found in results.by_strategy().items():
            yield source, label, found


def _score(source: str, label: str | None, results: Results, metric: MetricName, options: ScoringOptions) -> Scored:
    made = score_results(results, metric, options.legacy_threshold, options.point_tolerance_px)
    return Scored(source, label, made)


def _measured(results: Results, scored: Scored) -> Measured:
    of_actions = [record for record in results.records if is_actions(record.sample.truth)]
    records = results.records if scored.score.scores_texts else of_actions
    failed = sum(record.error is not None for record in records)
    return Measured(scored.score.step_accuracy, failed, len(records) + len(results.rows))


def _judged(results: Results, endpoint: ChatEndpoint, prompt: JudgePrompt, cache: Path) -> Judgement:
    answers = results.answers
    with judging(len(answers)) as advance:
        return asyncio.run(grade_answers(answers, endpoint, prompt, cache, advance))


def _cost(judgement: Judgement) -> dict[str, Any]:
    return {
        "judge_calls": judgement.calls,
        "judge_cached": judgement.cached,
        "judge_prompt_tokens": judgement.prompt_tokens,
        "judge_completion_tokens": judgement.completion_tokens,
        "judge_unscored": dict(judgement.unscored),
    }
