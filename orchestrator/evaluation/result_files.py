"""Read and score existing result files: records of this system, and rows in the published study's format."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Any

from infra.contract.errors import InvalidArgumentError, LoraRetrieverError, NotFoundError
from orchestrator.evaluation.actions import POINT_TOLERANCE_PX, is_actions
from orchestrator.evaluation.metrics.action import ActionMetric, ActionTypeMetric, score_action_parts
from orchestrator.evaluation.metrics.episodes import AnsweredEpisode, answer_at, score_episodes, score_steps
from orchestrator.evaluation.metrics.floor import Metric
from orchestrator.evaluation.metrics.legacy import LEGACY_THRESHOLD, LegacyMetric
from orchestrator.evaluation.metrics.paired import Question, QuestionScore, content_digest
from orchestrator.evaluation.metrics.text import TEXT_SCORES, AnsweredText, mean_score, score_answers
from orchestrator.evaluation.metrics.uncertainty import Estimate
from orchestrator.evaluation.records import Record
from orchestrator.evaluation.scoring import answered_episodes, answered_texts


class MetricName(StrEnum):
    """The metrics that a result file can be scored with. Action metrics score steps, text metrics whole answers."""

    ACTION = "action"
    ACTION_TYPE = "action_type"
    LEGACY = "legacy"
    EXACT_MATCH = "exact_match"
    ROUGE_L = "rouge_l"
    BLEU = "bleu"

    @property
    def scores_texts(self) -> bool:
        """Whether the metric scores whole answers, each in [0, 1], and not episodes."""
        return self.value in TEXT_SCORES


_ACTION_METRICS = frozenset(metric.value for metric in MetricName if not metric.scores_texts)


@dataclass(frozen=True)
class FileScore:
    """The score of a result file. Shares are in [0, 1]; None: unscored. Intervals are 95 %.

    Text metrics and judges score answers as steps and have neither episodes nor a floor.

    Attributes:
        step_accuracy: share of correct steps.
        step_standard_error: its standard error, clustered by episode.
        episode_accuracy: share of correct episodes.
        episode_standard_error: its standard error.
        step_count: number of scored steps.
        episode_count: number of scored episodes (for texts: of clusters).
        floor: step share of the best constant template under the same metric.
        episode_floor: episode share of the best constant template.
        failed_count: records without an answer, which are in no share.
        metric: name of the metric, or of the judge.
        step_interval: interval of `step_accuracy`.
        episode_interval: interval of `episode_accuracy`.
        action_type: share of correct action types, for the metric `action` only.
        argument: share of correct arguments, for the metric `action` only.
    """

    step_accuracy: float | None
    step_standard_error: float | None
    episode_accuracy: float | None
    episode_standard_error: float | None
    step_count: int
    episode_count: int
    floor: float | None
    episode_floor: float | None
    failed_count: int
    metric: str
    step_interval: tuple[float, float] | None = None
    episode_interval: tuple[float, float] | None = None
    action_type: float | None = None
    argument: float | None = None

    @property
    def scores_texts(self) -> bool:
        """Whether this is the mean score of whole answers, by a text metric or a judge."""
        return self.metric not in _ACTION_METRICS

    def to_json(self) -> dict[str, Any]:
        """Return the score as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Results:
    """The content of a result file: records of this system, or rows in the study's format.

    Attributes:
        source: name of the file or job, for errors and tables.
        records: records of this system.
        rows: rows in the study's format.
        modes: distinct values of the rows' field `mode`.
    """

    source: str
    records: tuple[Record, ...]
    rows: tuple[AnsweredEpisode, ...]
    modes: tuple[str, ...] = ()

    @property
    def strategies(self) -> tuple[str, ...]:
        """Labels of the records' strategies; empty for the study's rows."""
        return tuple(dict.fromkeys(record.sample.strategy.label for record in self.records))

    @property
    def protocols(self) -> tuple[str, ...]:
        """Protocols of the answers: those of the records, and the modes of the study's rows."""
        return tuple(dict.fromkeys([*(record.sample.protocol.value for record in self.records), *self.modes]))

    @property
    def headline_metric(self) -> MetricName:
        """`action`, or `exact_match` if no true answer is in the action language."""
        truths = chain((record.sample.truth for record in self.records), *(row.truths for row in self.rows))
        return MetricName.ACTION if any(map(is_actions, truths)) else MetricName.EXACT_MATCH

    def of_strategy(self, strategy: str | None = None) -> Results:
        """Return the results of one strategy. Raises InvalidArgumentError if it is absent, or unnamed among several."""
        labels = self.strategies
        if strategy is None and len(labels) > 1:
            raise InvalidArgumentError(
                "strategy", f"{self.source} has several strategies ({', '.join(labels)}); choose one"
            )
        if strategy is not None and strategy not in labels:
            present = f"it has {', '.join(labels)}" if labels else "its rows have no strategies"
            raise InvalidArgumentError("strategy", f"{self.source} has no {strategy!r}; {present}")
        chosen = [record for record in self.records if strategy in (None, record.sample.strategy.label)]
        return replace(self, records=tuple(chosen))

    def by_strategy(self) -> dict[str | None, Results]:
        """Return the results of each strategy by label; a single or unnamed strategy has the key None."""
        if len(self.strategies) <= 1:
            return {None: self}
        return {label: self.of_strategy(label) for label in self.strategies}

    @property
    def episodes(self) -> list[AnsweredEpisode]:
        """Answers as episodes, the input of the action metrics."""
        return [*self.rows, *answered_episodes(self.records)]

    @property
    def answers(self) -> list[AnsweredText]:
        """Answers as texts, the input of the text metrics and of a judge."""
        rows = (
            AnsweredText(row.question(step), row.cluster, truth, answer_at(row, step))
            for row in self.rows
            for step, truth in enumerate(row.truths)
        )
        return [*rows, *answered_texts(self.records)]

    @property
    def failed_count(self) -> int:
        """Number of records without an answer."""
        return sum(record.error is not None for record in self.records)


def score_file(
    path: Path,
    metric: MetricName = MetricName.ACTION,
    threshold: float = LEGACY_THRESHOLD,
    *,
    strategy: str | None = None,
    point_tolerance_px: float = POINT_TOLERANCE_PX,
) -> FileScore:
    """Score a JSONL file of records or of `{"episode_id", "mode", "num_steps", "ground_truths", "predictions"}` rows.

    `threshold` is used by `legacy` only. If the records have several strategies, one must be chosen by label.

    Raises:
        NotFoundError: the file cannot be read.
        InvalidArgumentError: a line cannot be parsed (with file, line and problem), or no strategy was chosen.
    """
    return score_results(read_results(path).of_strategy(strategy), metric, threshold, point_tolerance_px)


def score_results(
    results: Results,
    metric: MetricName = MetricName.ACTION,
    threshold: float = LEGACY_THRESHOLD,
    point_tolerance_px: float = POINT_TOLERANCE_PX,
) -> FileScore:
    """Score the results of one strategy."""
    if metric.scores_texts:
        return file_score_of_answers(mean_score(score_questions(results, metric)), results, metric.value)
    score = score_episodes(results.episodes, _metric(metric, threshold, point_tolerance_px))
    parts = score_action_parts(results.episodes, point_tolerance_px) if metric is MetricName.ACTION else None
    return FileScore(
        step_accuracy=score.steps.value,
        step_standard_error=score.steps.standard_error,
        episode_accuracy=score.episodes.value,
        episode_standard_error=score.episodes.standard_error,
        step_count=score.steps.count,
        episode_count=score.episodes.count,
        floor=score.step_floor,
        episode_floor=score.episode_floor,
        failed_count=results.failed_count,
        metric=metric.value,
        step_interval=_interval(score.steps),
        episode_interval=_interval(score.episodes),
        action_type=parts.action_type.value if parts else None,
        argument=parts.argument.value if parts else None,
    )


def file_score_of_answers(score: Estimate, results: Results, metric: str) -> FileScore:
    """Return the mean score of whole answers as a FileScore without episodes."""
    return FileScore(
        step_accuracy=score.value,
        step_standard_error=score.standard_error,
        episode_accuracy=None,
        episode_standard_error=None,
        step_count=score.count,
        episode_count=score.clusters,
        floor=None,
        episode_floor=None,
        failed_count=results.failed_count,
        metric=metric,
        step_interval=_interval(score),
    )


def score_questions(
    results: Results,
    metric: MetricName,
    threshold: float = LEGACY_THRESHOLD,
    point_tolerance_px: float = POINT_TOLERANCE_PX,
) -> dict[Question, QuestionScore]:
    """Return the score of every scored step, or of every answer for a text metric."""
    if metric.scores_texts:
        return score_answers(results.answers, TEXT_SCORES[metric.value])
    return score_steps(results.episodes, _metric(metric, threshold, point_tolerance_px))


def read_results(path: Path) -> Results:
    """Read a result file of either format. Raises NotFoundError, or InvalidArgumentError with file and line."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise NotFoundError(f"{path} cannot be read: {error.strerror}; give a JSONL file of results") from error
    return parse_results(content, str(path))


def parse_results(content: bytes, source: str) -> Results:
    """Parse the bytes of a result file; `source` appears in errors."""
    records: list[Record] = []
    rows: list[AnsweredEpisode] = []
    modes: dict[str, None] = {}
    episode_counts: Counter[str] = Counter()
    for line, text in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not text.strip():
            continue
        try:
            fields = json.loads(text)
            if isinstance(fields, dict) and "sample" in fields:
                records.append(Record.from_json(fields))
                continue
            rows.append(_study_row(fields, episode_counts))
        except (ValueError, RecursionError, LoraRetrieverError) as error:
            raise InvalidArgumentError("", f"{source}:{line}: {_first_line(error)}") from error
        mode = fields.get("mode")
        if isinstance(mode, str) and mode:
            modes[mode] = None
    if not records and not rows:
        raise InvalidArgumentError("", f"{source} has no results")
    return Results(source, tuple(records), tuple(rows), tuple(modes))


def _metric(name: MetricName, threshold: float, point_tolerance_px: float) -> Metric:
    match name:
        case MetricName.LEGACY:
            return LegacyMetric(threshold)
        case MetricName.ACTION_TYPE:
            return ActionTypeMetric()
        case _:
            return ActionMetric(point_tolerance_px)


def _interval(estimate: Estimate) -> tuple[float, float] | None:
    return None if estimate.low is None or estimate.high is None else (estimate.low, estimate.high)


def _study_row(fields: Any, episode_counts: Counter[str]) -> AnsweredEpisode:
    """Parse a row in the study's format.

    Its `episode_id` need not be unique, so the name carries the number of its occurrence in `episode_counts`.
    """
    if not isinstance(fields, dict) or not {"ground_truths", "predictions"} <= fields.keys():
        raise ValueError("neither a record (sample, answer) nor a result row (ground_truths, predictions)")
    truths, answers = (_texts(fields, name) for name in ("ground_truths", "predictions"))
    if not truths:
        raise ValueError("ground_truths is empty")
    episode = str(fields.get("episode_id", ""))
    episode_counts[episode] += 1
    name = f"{episode}-{episode_counts[episode]}"
    return AnsweredEpisode("", f"{name}-{content_digest(*truths)}", truths, answers, name)


def _texts(fields: dict[str, Any], name: str) -> tuple[str, ...]:
    value = fields[name]
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{name} must be a list of strings")
    return tuple(value)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
