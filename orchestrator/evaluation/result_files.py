"""Scoring of result files that exist already: records of this system, and the format of the published study."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from infra.contract.errors import InvalidArgumentError, LoraRetrieverError, NotFoundError
from orchestrator.evaluation.actions import POINT_TOLERANCE_PX
from orchestrator.evaluation.metrics.action import ActionMetric
from orchestrator.evaluation.metrics.episodes import AnsweredEpisode, score_episodes
from orchestrator.evaluation.metrics.floor import Metric
from orchestrator.evaluation.metrics.legacy import LEGACY_THRESHOLD, LegacyMetric
from orchestrator.evaluation.records import Record
from orchestrator.evaluation.scoring import answered_episodes


class MetricName(StrEnum):
    """The metrics a file can be scored with."""

    ACTION = "action"
    LEGACY = "legacy"


@dataclass(frozen=True)
class FileScore:
    """Shares in [0, 1]; None: unscored. `floor` is the step share of the best constant template under the same metric.

    Counts are of what was scored; `failed_count` records had no answer and are in no share.
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

    def to_json(self) -> dict[str, Any]:
        """Return the score as JSON values."""
        return asdict(self)


def score_file(
    path: Path,
    metric: MetricName = MetricName.ACTION,
    threshold: float = LEGACY_THRESHOLD,
    *,
    strategy: str | None = None,
    point_tolerance_px: float = POINT_TOLERANCE_PX,
) -> FileScore:
    """Score a JSONL file of records or of `{"episode_id", "mode", "num_steps", "ground_truths", "predictions"}` rows.

    `threshold` matters to `legacy` alone. Records of several strategies answer the same episodes, so one of them must
    be chosen by its label. Raises NotFoundError without a file, InvalidArgumentError naming file, line and problem.
    """
    rows = _rows(path)
    records = [row for row in rows if isinstance(row, Record)]
    episodes = [row for row in rows if isinstance(row, AnsweredEpisode)]
    if records:
        records = _of_strategy(records, strategy, path)
        episodes += answered_episodes(records)
    chosen: Metric = LegacyMetric(threshold) if metric is MetricName.LEGACY else ActionMetric(point_tolerance_px)
    score = score_episodes(episodes, chosen)
    return FileScore(
        step_accuracy=score.steps.value,
        step_standard_error=score.steps.standard_error,
        episode_accuracy=score.episodes.value,
        episode_standard_error=score.episodes.standard_error,
        step_count=score.steps.count,
        episode_count=score.episodes.count,
        floor=score.step_floor,
        episode_floor=score.episode_floor,
        failed_count=sum(record.error is not None for record in records),
        metric=chosen.name,
    )


def _of_strategy(records: Sequence[Record], strategy: str | None, path: Path) -> list[Record]:
    labels = list(dict.fromkeys(record.sample.strategy.label for record in records))
    if strategy is None and len(labels) > 1:
        raise InvalidArgumentError("strategy", f"{path} holds {', '.join(labels)}; choose one")
    if strategy is not None and strategy not in labels:
        raise InvalidArgumentError("strategy", f"{path} has no {strategy!r}; it holds {', '.join(labels)}")
    return [record for record in records if record.sample.strategy.label == (strategy or labels[0])]


def _rows(path: Path) -> list[Record | AnsweredEpisode]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise NotFoundError(f"{path} cannot be read: {error.strerror}; give a JSONL file of results") from error
    rows = []
    for line, text in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if text.strip():
            try:
                rows.append(_row(path.stem, line, json.loads(text)))
            except (ValueError, RecursionError, LoraRetrieverError) as error:
                raise InvalidArgumentError("", f"{path}:{line}: {_first_line(error)}") from error
    if not rows:
        raise InvalidArgumentError("", f"{path} holds no results")
    return rows


def _row(dataset: str, line: int, fields: Any) -> Record | AnsweredEpisode:
    if isinstance(fields, dict) and "sample" in fields:
        return Record.from_json(fields)
    if not isinstance(fields, dict) or not {"ground_truths", "predictions"} <= fields.keys():
        raise ValueError("neither a record (sample, answer) nor a result row (ground_truths, predictions)")
    truths, answers = (_texts(fields, name) for name in ("ground_truths", "predictions"))
    if not truths:
        raise ValueError("ground_truths is empty")
    return AnsweredEpisode(dataset, f"{fields.get('episode_id', '')}-{line}", truths, answers)


def _texts(fields: dict[str, Any], name: str) -> tuple[str, ...]:
    value = fields[name]
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{name} must be a list of strings")
    return tuple(value)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
