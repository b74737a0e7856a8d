"""Records to the samples that a page lists: fairly chosen where there are too many, pictures within a budget."""

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
MAX_TEXT = 4000
MAX_STEPS = 100
MAX_IMAGES = 8
MAX_PICTURE_BYTES = 8 * 2**20
PICTURE_PX = 320


@dataclass(frozen=True)
class ThumbnailBudget:
    """Files are read below `roots` only; all pictures of a page together have at most `max_bytes`."""

    roots: tuple[Path, ...] = ()
    max_bytes: int = MAX_PICTURE_BYTES


def choose_samples(records: Iterable[Record], most: int = MAX_SAMPLES) -> list[Record]:
    """Return at most `most` records, as many of each dataset as can be, and of a question those of every strategy.

    The questions of a dataset are drawn by the hash of their names: always the same ones.
    """
    by_dataset: defaultdict[str, defaultdict[tuple[str, int], list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        sample = record.sample
        by_dataset[sample.dataset][sample.episode_id, sample.step].append(record)
    drawn = [[questions[name] for name in sorted(questions, key=_draw)] for _, questions in sorted(by_dataset.items())]
    chosen: list[Record] = []
    for question in chain.from_iterable(zip_longest(*drawn)):
        chosen += question or []
        if len(chosen) >= most:
            break
    return sorted(chosen[:most], key=_place)


def samples_json(
    records: Sequence[Record],
    budget: ThumbnailBudget,
    point_tolerance_px: float,
    grades: Mapping[str, float] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return samples and pictures as JSON values, for report.js; a picture is None where it cannot be shown.

    `grades` are a judge's, by sample key.
    """
    pictures = _Pictures(budget)
    metric = ActionMetric(point_tolerance_px)
    return {
        "samples": [_sample(record, metric, pictures, grades.get(record.sample.key)) for record in records],
        "pictures": pictures.shown,
    }


def _sample(record: Record, metric: ActionMetric, pictures: _Pictures, grade: float | None) -> dict[str, Any]:
    sample = record.sample
    usage, timings = record.usage, record.timings
    return {
        "strategy": sample.strategy.label,
        "dataset": sample.dataset,
        "episode": sample.episode_id,
        "step": sample.step + 1,
        "steps": sample.step_count,
        "whole": sample.protocol is PromptProtocol.SEQUENCE,
        "text": _cut(sample.text),
        "adapter": sample.adapter_id or "",
        "error": f"{record.error.reason}: {_cut(record.error.message)}" if record.error else "",
        "actions": _actions(record, metric),
        "scores": _text_scores(record),
        "adapters": _adapters(record),
        "pictures": [pictures.number(path) for path in sample.images[:MAX_IMAGES]],
        "more_pictures": max(0, len(sample.images) - MAX_IMAGES),
        "seconds": round(timings.total_s, 4) if timings else None,
        "grade": _round(grade),
        "tokens": [usage.prompt_tokens, usage.completion_tokens] if usage else None,
    }


def _actions(record: Record, metric: ActionMetric) -> list[list[Any]]:
    """Return [truth, answer, whether it is right] of each step; null: there is none, or it is unscored.

    Where the truth is not in the action language the whole answer is one step, neither right nor wrong.
    """
    if not expects_actions(record):
        return [[_cut(record.sample.truth), None if record.answer is None else _cut(record.answer), None]]
    scores = step_scores(record, [metric])
    is_sequence = record.sample.protocol is PromptProtocol.SEQUENCE
    truths = split_actions(record.sample.truth) if is_sequence else [record.sample.truth]
    answers: list[str] = []
    if record.answer is not None:
        answers = [*split_actions(record.answer)] if is_sequence else [record.answer]
    right: list[bool | None] = [*scores[metric.name]] if scores is not None else [None] * len(truths)
    right += [False] * (len(answers) - len(truths))
    rows = [
        [_cut(truth) if truth is not None else None, _cut(answer) if answer is not None else None, is_right]
        for truth, answer, is_right in zip_longest(truths, answers, right)
    ]
    return rows[:MAX_STEPS]


def _text_scores(record: Record) -> dict[str, float] | None:
    """Return the scores of a whole answer by their titles; None where there is none."""
    scores = None if expects_actions(record) else text_scores(record)
    return None if scores is None else dict(zip(TEXT_COLUMNS, map(_rounded, scores.values()), strict=True))


def _adapters(record: Record) -> list[list[Any]]:
    """Return [id, similarity, weight] of what was retrieved or applied; null: not so."""
    found = {match.adapter_id: [match.similarity, match.weight] for match in record.matches or ()}
    applied = {adapter.adapter_id: adapter.weight for adapter in record.applied}
    names = [*found, *(name for name in applied if name not in found)]
    rows = []
    for name in names[:MAX_STEPS]:
        similarity, weight = found.get(name, (None, None))
        rows.append([name, _round(similarity), _round(applied.get(name, 0.0 if applied else weight))])
    return rows


class _Pictures:
    """Pictures made small, each file once."""

    def __init__(self, budget: ThumbnailBudget) -> None:
        self.shown: list[str | None] = []
        self._numbers: dict[Path, int] = {}
        self._roots = [root.resolve() for root in budget.roots]
        self._left = budget.max_bytes

    def number(self, path: Path) -> int:
        if path not in self._numbers:
            self._numbers[path] = len(self.shown)
            self.shown.append(self._data_uri(path))
        return self._numbers[path]

    def _data_uri(self, path: Path) -> str | None:
        if self._left <= 0:
            return None
        try:
            image = decode_image(ImagePart(read_image(path, self._roots)))
        except (NotFoundError, InvalidArgumentError):
            return None
        image.thumbnail((PICTURE_PX, PICTURE_PX))
        file = io.BytesIO()
        image.save(file, "WEBP", quality=60)
        uri = f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
        if len(uri) > self._left:
            self._left = 0
            return None
        self._left -= len(uri)
        return uri


def _draw(question: tuple[str, int]) -> bytes:
    return hashlib.sha256(f"{question[0]}\n{question[1]}".encode()).digest()


def _place(record: Record) -> tuple[str, str, int, str]:
    sample = record.sample
    return sample.dataset, sample.episode_id, sample.step, sample.strategy.label


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def _round(value: float | None) -> float | None:
    return None if value is None else _rounded(value)


def _rounded(value: float) -> float:
    return round(value, 4)
