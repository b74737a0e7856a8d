"""`loraretriever evaluate score|compare`: results that exist, as files or as the records of a job."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from infra.contract.errors import InvalidArgumentError, NotFoundError
from orchestrator.commands import console
from orchestrator.commands.gate import gate
from orchestrator.commands.job_options import FailUnder, MetricOption, Threshold
from orchestrator.commands.jobs import called
from orchestrator.commands.settings import client_settings
from orchestrator.commands.targets import AsJson, OrchestratorTarget
from orchestrator.evaluation.compare import compare
from orchestrator.evaluation.finish import RECORDS_FILE
from orchestrator.evaluation.judge import DEFAULT_TEMPLATE, Judgement, JudgePrompt, judge
from orchestrator.evaluation.judge_client import ChatEndpoint
from orchestrator.evaluation.matrix import interval_text
from orchestrator.evaluation.metrics.legacy import LEGACY_THRESHOLD
from orchestrator.evaluation.metrics.text import mean_score
from orchestrator.evaluation.result_files import (
    FileScore,
    MetricName,
    Results,
    parse_results,
    read_results,
    score_of_answers,
    score_results,
)
from orchestrator.evaluation.storage import read_text

JUDGE_CACHE = Path(".loraretriever/judge")

Sources = Annotated[
    list[str], typer.Argument(help="Records of a job (its id, folder or records.jsonl), or result files of the study.")
]
Source = Annotated[str, typer.Argument(help="A job's id, its folder, or a JSONL file of results.")]


def score(
    *,
    sources: Sources,
    metric: MetricOption = MetricName.ACTION,
    threshold: Threshold = LEGACY_THRESHOLD,
    strategy: Annotated[str | None, typer.Option(help="Of records: which strategy to score, by its label.")] = None,
    judge_url: Annotated[
        str, typer.Option("--judge", help="Let a model grade the answers: base URL of an OpenAI-compatible endpoint.")
    ] = "",
    judge_model: Annotated[
        str, typer.Option(help="The judge's model. Its key is read from LORARETRIEVER_CLIENT_JUDGE_KEY.")
    ] = "",
    judge_prompt: Annotated[
        Path | None, typer.Option(help="File with the judge's prompt: {truth}, {answer}, {question} are filled in.")
    ] = None,
    judge_rate: Annotated[float | None, typer.Option(help="Calls a minute at most (default: no limit).")] = None,
    judge_concurrency: Annotated[int, typer.Option(help="Calls under way at a time.")] = 8,
    judge_cache: Annotated[Path, typer.Option(help="Folder of what the judge has said already.")] = JUDGE_CACHE,
    fail_under: FailUnder = None,
    orchestrator_target: OrchestratorTarget = "",
    as_json: AsJson = False,
) -> None:
    """Score results that exist, without any model or server (but for --judge, and for jobs named by id)."""
    if judge_url:
        endpoint = ChatEndpoint(
            judge_url,
            judge_model,
            key=_judge_key(),
            requests_per_minute=judge_rate,
            concurrency=judge_concurrency,
        )
        prompt = JudgePrompt(_read_prompt(judge_prompt))
    scored: list[tuple[str, FileScore]] = []
    costs: list[dict[str, Any]] = []
    for source in sources:
        results = results_of(source, orchestrator_target).of_strategy(strategy)
        if judge_url:
            judgement = asyncio.run(_judged(results, endpoint, prompt, judge_cache))
            scored.append((source, score_of_answers(mean_score(judgement.scores), results, f"judge {judge_model}")))
            costs.append(_cost(judgement))
        else:
            scored.append((source, score_results(results, metric, threshold)))
    print_scores(scored, costs, as_json)
    gate({source: found.step_accuracy for source, found in scored}, fail_under)


def compare_results(
    *,
    first: Source,
    second: Source,
    metric: MetricOption = MetricName.ACTION,
    threshold: Threshold = LEGACY_THRESHOLD,
    strategy: Annotated[str | None, typer.Option(help="Of the first: which strategy, by its label.")] = None,
    against: Annotated[str | None, typer.Option(help="Of the second (default: as --strategy).")] = None,
    orchestrator_target: OrchestratorTarget = "",
    as_json: AsJson = False,
) -> None:
    """Compare two sets of results question by question: paired differences with their 95 % intervals."""
    left, right = (results_of(source, orchestrator_target) for source in (first, second))
    found = compare(left, right, metric, threshold, strategy=strategy, against=against)
    if as_json:
        console.print_json(found)
        return
    table = Table("first", "second", "metric", "first, %", "second, %", "second - first", "pairs", "episodes")
    for each in found:
        table.add_row(
            each.first,
            each.second,
            each.metric,
            interval_text(each.first_score),
            interval_text(each.second_score),
            interval_text(each.difference, signed=True),
            str(each.difference.count),
            str(each.difference.clusters),
        )
    console.results().print(table)


def results_of(source: str, orchestrator_target: str = "") -> Results:
    """Return the results that a file, a job's folder or a job's id stands for. Raises NotFoundError."""
    path = Path(source)
    if path.is_dir():
        return read_results(path / RECORDS_FILE)
    if path.exists() or path.suffix or "/" in source:
        return read_results(path)
    job = called(orchestrator_target, lambda client: client.get(source))
    try:
        text = read_text(job.output_uri, RECORDS_FILE)
    except NotFoundError as error:
        raise NotFoundError(
            f"job {source} is {job.state.value} and its records are not to be read here at {job.output_uri}; "
            "they are written when it ends, copy them here where its folder is on another machine"
        ) from error
    return replace(parse_results(text.encode(), source), source=source)


def print_scores(scored: list[tuple[str, FileScore]], costs: list[dict[str, Any]], as_json: bool) -> None:
    """Print the scores: with `as_json` an object for one, a list for several; `costs` are what judges took."""
    if as_json:
        extra = costs or [{}] * len(scored)
        objects = [{"file": file, **found.to_json(), **more} for (file, found), more in zip(scored, extra, strict=True)]
        console.print_json(objects[0] if len(objects) == 1 else objects)
        return
    table = Table("file", "metric", "steps right", "floor", "episodes right", "floor", "steps", "episodes", "failed")
    for file, found in scored:
        table.add_row(file, found.metric, *_cells(found))
    console.results().print(table)
    for cost in costs:
        unscored = "".join(f"; unscored: {count} ({reason})" for reason, count in cost["judge_unscored"].items())
        console.note(
            f"judge: {cost['judge_calls']} calls, {cost['judge_cached']} replies known already, "
            f"{cost['judge_prompt_tokens']} + {cost['judge_completion_tokens']} tokens{unscored}"
        )


async def _judged(results: Results, endpoint: ChatEndpoint, prompt: JudgePrompt, cache: Path) -> Judgement:
    answers = results.answers
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    err = console.progress()
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("judging", total=len(answers))
        return await judge(answers, endpoint, prompt, cache, lambda done: bar.update(task, completed=done))


def _judge_key() -> str:
    key = client_settings().judge_key
    return key.get_secret_value() if key is not None else ""


def _read_prompt(file: Path | None) -> str:
    if file is None:
        return DEFAULT_TEMPLATE
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InvalidArgumentError("judge_prompt", f"{file} cannot be read: {error}") from error


def _cost(judgement: Judgement) -> dict[str, Any]:
    return {
        "judge_calls": judgement.calls,
        "judge_cached": judgement.cached,
        "judge_prompt_tokens": judgement.prompt_tokens,
        "judge_completion_tokens": judgement.completion_tokens,
        "judge_unscored": dict(judgement.unscored),
    }


def _cells(found: FileScore) -> tuple[str, ...]:
    return (
        _percent(found.step_accuracy, found.step_standard_error),
        _percent(found.floor),
        _percent(found.episode_accuracy, found.episode_standard_error),
        _percent(found.episode_floor),
        str(found.step_count),
        str(found.episode_count),
        str(found.failed_count),
    )


def _percent(value: float | None, error: float | None = None) -> str:
    if value is None:
        return "unscored"
    return f"{value:.1%}" + (f" ± {error:.1%}" if error is not None else "")
