"""Choose the samples that the page lists, and convert them and their images to JSON for report.js."""

from __future__ import annotations

import base64
import hashlib
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from types import MappingProxyType
from typing import Any

from infra.contract.errors import InvalidArgumentError, NotFoundError
from infra.contract.prompt import ImagePart
from infra.runtime.images import decode_image
from orchestrator.evaluation.actions import split_actions
from orchestrator.evaluation.data.image_files import read_image
from orchestrator.evaluation.metrics.action import ActionMetric
from orchestrator.evaluation.records import Record
from orchestrator.evaluation.report.metric_tables import TEXT_COLUMNS
from orchestrator.evaluation.scoring import expects_actions, step_scores, text_scores
from orchestrator.evaluation.spec import PromptProtocol

MAX_SAMPLES = 2000
"""Bounds the size of the page."""

_MAX_TEXT = 4000
_MAX_STEPS = 100
_MAX_IMAGES = 8
_MAX_THUMBNAIL_BYTES = 8 * 2**20
_THUMBNAIL_PX = 320


@dataclass(frozen=True)
class ThumbnailBudget:
    """Limits on a page's thumbnails: images are read below `roots` only, and all have at most `max_bytes` in total."""

    roots: tuple[Path, ...] = ()
    max_bytes: int = _MAX_THUMBNAIL_BYTES


def choose_samples(records: Iterable[Record], limit: int = MAX_SAMPLES) -> list[Record]:
    """Return at most `limit` records, evenly over datasets, each question with the records of all its strategies.

    Questions are ordered by a hash of their names, so the choice is deterministic.
    """
    by_dataset: defaultdict[str, defaultdict[tuple[str, int], list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        sample = record.sample
        by_dataset[sample.dataset][sample.episode_id, sample.step].append(record)
    shuffled = [
        [questions[name] for name in sorted(questions, key=_question_hash)]
        for _, questions in sorted(by_dataset.items())
    ]
    chosen: list[Record] = []
    for question in chain.from_iterable(zip_longest(*shuffled)):
        chosen += question or []
        if len(chosen) >= limit:
            break
    return sorted(chosen[:limit], key=_sort_key)


def samples_json(
    records: Sequence[Record],
    budget: ThumbnailBudget,
    point_tolerance_px: float,
    grades: Mapping[str, float] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return samples and thumbnails as JSON values for report.js; a thumbnail is None if it cannot be shown.

    `grades` are a judge's, by sample key.
    """
    thumbnails = _Thumbnails(budget)
    metric = ActionMetric(point_tolerance_px)
    return {
        "samples": [_sample(record, metric, thumbnails, grades.get(record.sample.key)) for record in records],
        "pictures": thumbnails.data_uris,
    }


def _sample(record: Record, metric: ActionMetric, thumbnails: _Thumbnails, grade: float | None) -> dict[str, Any]:
    sample = record.sample
    usage, timings = record.usage, record.timings
    return {
        "strategy": sample.strategy.label,
        "dataset": sample.dataset,
        "episode": sample.episode_id,
        "step": sample.step + 1,
        "steps": sample.step_count,
        "whole": sample.protocol is PromptProtocol.SEQUENCE,
        "text": _truncate(sample.text),
        "adapter": sample.adapter_id or "",
        "error": f"{record.error.reason}: {_truncate(record.error.message)}" if record.error else "",
        "actions": _actions(record, metric),
        "scores": _text_scores(record),
        "adapters": _adapters(record),
        "pictures": [thumbnails.number(path) for path in sample.images[:_MAX_IMAGES]],
        "more_pictures": max(0, len(sample.images) - _MAX_IMAGES),
        "seconds": round(timings.total_s, 4) if timings else None,
        "grade": _round(grade),
        "tokens": [usage.prompt_tokens, usage.completion_tokens] if usage else None,
    }


def _actions(record: Record, metric: ActionMetric) -> list[list[Any]]:
    """Return [truth, answer, whether it is correct] of each step; null: absent or unscored.

    If the truth is not in the action language, the whole answer is one unscored step.
    """
    if not expects_actions(record):
        return [[_truncate(record.sample.truth), None if record.answer is None else _truncate(record.answer), None]]
    scores = step_scores(record, [metric])
    is_sequence = record.sample.protocol is PromptProtocol.SEQUENCE
    truths = split_actions(record.sample.truth) if is_sequence else [record.sample.truth]
    answers: list[str] = []
    if record.answer is not None:
        answers = [*split_actions(record.answer)] if is_sequence else [record.answer]
    correct: list[bool | None] = [*scores[metric.name]] if scores is not None else [None] * len(truths)
    correct += [False] * (len(answers) - len(truths))
    rows = [
        [_truncate(truth) if truth is not None else None, _truncate(answer) if answer is not None else None, is_correct]
        for truth, answer, is_correct in zip_longest(truths, answers, correct)
    ]
    return rows[:_MAX_STEPS]


def _text_scores(record: Record) -> dict[str, float] | None:
    """Return the scores of a whole answer by column title; None: there are none."""
    scores = None if expects_actions(record) else text_scores(record)
    return (
        None
        if scores is None
        else {title: round(score, 4) for title, score in zip(TEXT_COLUMNS, scores.values(), strict=True)}
    )


def _adapters(record: Record) -> list[list[Any]]:
    """Return [id, similarity, weight] of each adapter retrieved or applied; null: not retrieved, or not applied."""
    matches = {match.adapter_id: match for match in record.matches or ()}
    applied = {adapter.adapter_id: adapter.weight for adapter in record.applied}
    names = [*matches, *(name for name in applied if name not in matches)]
    rows = []
    for name in names[:_MAX_STEPS]:
        match = matches.get(name)
        similarity, proposed = (match.similarity, match.weight) if match is not None else (None, None)
        # Without an applied composition (the answer failed), show the weight that retrieval proposed.
        weight = applied.get(name, 0.0) if applied else proposed
        rows.append([name, _round(similarity), _round(weight)])
    return rows


class _Thumbnails:
    """Thumbnails as data URIs, one per file, until the budget is spent."""

    def __init__(self, budget: ThumbnailBudget) -> None:
        self.data_uris: list[str | None] = []
        self._numbers: dict[Path, int] = {}
        self._roots = [root.resolve() for root in budget.roots]
        self._bytes_left = budget.max_bytes

    def number(self, path: Path) -> int:
        if path not in self._numbers:
            self._numbers[path] = len(self.data_uris)
            self.data_uris.append(self._data_uri(path))
        return self._numbers[path]

    def _data_uri(self, path: Path) -> str | None:
        if self._bytes_left <= 0:
            return None
        try:
            image = decode_image(ImagePart(read_image(path, self._roots)))
        except (NotFoundError, InvalidArgumentError):
            return None
        image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
        file = io.BytesIO()
        image.save(file, "WEBP", quality=60)
        uri = f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
        if len(uri) > self._bytes_left:
            self._bytes_left = 0
            return None
        self._bytes_left -= len(uri)
        return uri


def _question_hash(question: tuple[str, int]) -> bytes:
    return hashlib.sha256(f"{question[0]}\n{question[1]}".encode()).digest()


def _sort_key(record: Record) -> tuple[str, str, int, str]:
    sample = record.sample
    return sample.dataset, sample.episode_id, sample.step, sample.strategy.label


def _truncate(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
