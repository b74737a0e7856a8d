"""Score existing result files with one metric."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from orchestrator.evaluation.actions import POINT_TOLERANCE_PX, is_actions
from orchestrator.evaluation.metrics.action import ActionMetric, ActionTypeMetric, score_action_parts
from orchestrator.evaluation.metrics.episodes import AnsweredEpisode, score_episodes, score_steps
from orchestrator.evaluation.metrics.floor import Metric
from orchestrator.evaluation.metrics.legacy import LEGACY_THRESHOLD, LegacyMetric
from orchestrator.evaluation.metrics.paired import Question, QuestionScore
from orchestrator.evaluation.metrics.text import TEXT_SCORES, mean_score, score_answers
from orchestrator.evaluation.metrics.uncertainty import Estimate
from orchestrator.evaluation.result_files import Results, read_results


class MetricName(StrEnum):
    """The metrics that a result file can be scored with. Action metrics score steps, text metrics whole answers.

    `legacy_row` is the study's score of a whole row: `legacy` of all its actions as one text.
    """

    ACTION = "action"
    ACTION_TYPE = "action_type"
    LEGACY = "legacy"
    LEGACY_ROW = "legacy_row"
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


def headline_metric(*results: Results) -> MetricName:
    """Return the default metric: `action` if any true answer is in the action language, else `exact_match`."""
    is_action = any(is_actions(truth) for source in results for truth in source.truths)
    return MetricName.ACTION if is_action else MetricName.EXACT_MATCH


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
    score = score_episodes(_episodes(results, metric), _metric(metric, threshold, point_tolerance_px))
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
    return score_steps(_episodes(results, metric), _metric(metric, threshold, point_tolerance_px))


def _episodes(results: Results, metric: MetricName) -> list[AnsweredEpisode]:
    return results.whole_rows if metric is MetricName.LEGACY_ROW else results.episodes


def _metric(name: MetricName, threshold: float, point_tolerance_px: float) -> Metric:
    match name:
        case MetricName.LEGACY | MetricName.LEGACY_ROW:
            return LegacyMetric(threshold)
        case MetricName.ACTION_TYPE:
            return ActionTypeMetric()
        case _:
            return ActionMetric(point_tolerance_px)


def _interval(estimate: Estimate) -> tuple[float, float] | None:
    return None if estimate.low is None or estimate.high is None else (estimate.low, estimate.high)
