"""`loraretriever evaluate score|compare`: existing results, as files or as the records of a job."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from infra.contract.errors import InvalidArgumentError
from orchestrator.cli.ci_gate import Gate, GatedScore
from orchestrator.cli.options.binding import with_options
from orchestrator.cli.options.scoring import GateOptions, JudgeOptions, MetricOption, ScoringFlags, StrategyLabel
from orchestrator.cli.options.targets import OrchestratorTier
from orchestrator.cli.progress import judging
from orchestrator.cli.result_sources import load_results, result_files, sources_in
from orchestrator.cli.strategies import complete_strategies
from orchestrator.cli.tables import SourceScore, print_comparisons, print_scores
from orchestrator.evaluation.actions import is_actions
from orchestrator.evaluation.compare import compare
from orchestrator.evaluation.judge.chat_client import ChatEndpoint
from orchestrator.evaluation.judge.grading import Judgement, JudgePrompt, grade_answers
from orchestrator.evaluation.metrics.text import mean_score
from orchestrator.evaluation.report.summary import ScoringOptions
from orchestrator.evaluation.result_files import Results
from orchestrator.evaluation.result_scores import MetricName, file_score_of_answers, headline_metric, score_results

Source = Annotated[str, typer.Argument(help="A job's id, its folder, or a JSONL file of results.")]


@dataclass
class _Scores:
    """The scores to print, and the ones that the gate checks."""

    printed: list[SourceScore] = field(default_factory=list)
    gated: dict[str, GatedScore] = field(default_factory=dict)

    def finish(self, gate: Gate, as_json: bool) -> None:
        """Print the scores and exit with status 1 if they fail the gate."""
        print_scores(self.printed, as_json)
        gate.check_scores(self.gated)


@with_options
def score(
    *,
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Records of a job (its id, folder or records.jsonl), result files of the study, or folders of them."
        ),
    ],
    metric: MetricOption = None,
    scoring: ScoringFlags,
    strategy: StrategyLabel = None,
    judging_by: JudgeOptions,
    gating: GateOptions,
    orchestrator: OrchestratorTier,
) -> None:
    """Score existing results; no model or server is needed, except for --judge and for jobs named by their ids."""
    gate = gating.gate()
    results = _results_in(sources, strategy, orchestrator)
    if judging_by.is_set:
        if metric is not None or scoring.is_set:
            raise InvalidArgumentError("metric", "a judge grades whole answers; leave --metric and its options out")
        scores = _judge_all(results, judging_by)
    else:
        judging_by.check_unset()
        scoring.options(metric or MetricName.ACTION)
        scores = _score_all(results, metric, scoring)
    scores.finish(gate, orchestrator.as_json)


@with_options
def compare_results(
    *,
    first: Source,
    second: Source,
    metric: MetricOption = None,
    scoring: ScoringFlags,
    strategy: StrategyLabel = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="The strategy of the second results (default: as --strategy).", autocompletion=complete_strategies
        ),
    ] = None,
    orchestrator: OrchestratorTier,
) -> None:
    """Compare two sets of results question by question: paired differences with their 95 % intervals."""
    scoring.options(metric or MetricName.ACTION)
    left, right = (load_results(source, orchestrator) for source in (first, second))
    chosen = metric or headline_metric(left, right)
    options = scoring.options(chosen)
    comparisons = compare(
        left,
        right,
        chosen,
        options.legacy_threshold,
        point_tolerance_px=options.point_tolerance_px,
        strategy=strategy,
        against=against,
    )
    print_comparisons(comparisons, (left.source, right.source), orchestrator.as_json)


def score_files(arguments: Sequence[str], gate: Gate, options: ScoringOptions, orchestrator: OrchestratorTier) -> None:
    """Score result files by their headline's metric, the legacy one and the gate's; exit with 1 if the gate fails.

    `arguments` are files, folders or patterns, each of which may be NAME=FILE.
    """
    if gate.only:
        raise InvalidArgumentError("fail_on", "has no effect on result files; 'evaluate score --strategy' selects one")
    scores = _Scores()
    for name, path in (file for argument in arguments for file in result_files(argument)):
        for label, results in load_results(path, orchestrator).by_strategy().items():
            headline = headline_metric(results)
            decisive = MetricName(gate.metric.value) if gate.metric else headline
            for metric in dict.fromkeys([headline, MetricName.LEGACY, MetricName.LEGACY_ROW, decisive]):
                source_score = _score(name, label, results, metric, options)
                scores.printed.append(source_score)
                if metric is decisive:
                    scores.gated[f"{name}: {label}" if label else name] = _gated(results, source_score)
    scores.finish(gate, orchestrator.as_json)


def print_study_scores(job_id: str, threshold: float, orchestrator: OrchestratorTier) -> None:
    """Print the legacy scores of a job with one strategy: of its actions and of its whole rows, with their floors."""
    results, options = load_results(job_id, orchestrator), ScoringOptions(legacy_threshold=threshold)
    metrics = (MetricName.ACTION, MetricName.LEGACY, MetricName.LEGACY_ROW)
    print_scores([_score(job_id, None, results, metric, options) for metric in metrics], False)


@dataclass(frozen=True)
class _SourceResults:
    """The results of a source, or of one strategy in it, which `label` names."""

    source: str
    label: str | None
    results: Results

    @property
    def name(self) -> str:
        return f"{self.source}: {self.label}" if self.label else self.source


def _results_in(
    arguments: Sequence[str], strategy: str | None, orchestrator: OrchestratorTier
) -> Iterator[_SourceResults]:
    """Yield the results of every source: those of `strategy`, or of each strategy that it has."""
    for source in (source for argument in arguments for source in sources_in(argument)):
        results = load_results(source, orchestrator)
        if strategy is not None:
            yield _SourceResults(source, None, results.of_strategy(strategy))
            continue
        for label, of_strategy in results.by_strategy().items():
            yield _SourceResults(source, label, of_strategy)


def _score_all(sources: Iterator[_SourceResults], metric: MetricName | None, scoring: ScoringFlags) -> _Scores:
    scores = _Scores()
    for source in sources:
        chosen = metric or headline_metric(source.results)
        source_score = _score(source.source, source.label, source.results, chosen, scoring.options(chosen))
        scores.printed.append(source_score)
        scores.gated[source.name] = _gated(source.results, source_score)
    return scores


def _judge_all(sources: Iterator[_SourceResults], options: JudgeOptions) -> _Scores:
    endpoint, prompt = options.endpoint(), options.prompt()
    scores = _Scores()
    for source in sources:
        judgement = _judge(source.results, endpoint, prompt, options.judge_cache)
        grade = file_score_of_answers(mean_score(judgement.scores), source.results, f"judge {options.judge_model}")
        scores.printed.append(SourceScore(source.source, source.label, grade, _cost(judgement)))
        scores.gated[source.name] = GatedScore(
            grade.step_accuracy, judgement.unscored.total(), len(source.results.answers)
        )
    return scores


def _score(
    source: str, label: str | None, results: Results, metric: MetricName, options: ScoringOptions
) -> SourceScore:
    return SourceScore(
        source, label, score_results(results, metric, options.legacy_threshold, options.point_tolerance_px)
    )


def _gated(results: Results, source_score: SourceScore) -> GatedScore:
    of_actions = [record for record in results.records if is_actions(record.sample.truth)]
    records = results.records if source_score.score.scores_texts else of_actions
    unscored = sum(record.error is not None for record in records)
    return GatedScore(source_score.score.step_accuracy, unscored, len(records) + len(results.rows))


def _judge(results: Results, endpoint: ChatEndpoint, prompt: JudgePrompt, cache: Path) -> Judgement:
    with judging(len(results.answers)) as advance:
        return asyncio.run(grade_answers(results.answers, endpoint, prompt, cache, advance))


def _cost(judgement: Judgement) -> dict[str, Any]:
    return {
        "judge_calls": judgement.calls,
        "judge_cached": judgement.cached,
        "judge_prompt_tokens": judgement.prompt_tokens,
        "judge_completion_tokens": judgement.completion_tokens,
        "judge_unscored": dict(judgement.unscored),
    }
