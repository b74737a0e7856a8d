"""Prompts whose adapter is known, in JSONL: {"query": "...", "images": ["..."], "adapter": "adidas"} a row."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.contract.adapter import check_adapter_id
from infra.contract.errors import InvalidArgumentError
from infra.contract.prompt import ImagePart, Prompt
from infra.contract.retrieval import Selection
from retrieval_service.evaluation.outcomes import Outcome


@dataclass(frozen=True)
class Labelled:
    """A prompt and the adapter it belongs to."""

    truth: str
    prompt: Prompt


@dataclass(frozen=True)
class LabelledRows:
    """The rows that could be read, and a sentence on each that could not."""

    rows: tuple[Labelled, ...]
    problems: tuple[str, ...]


def read_labelled(given: Sequence[str], max_images: int) -> LabelledRows:
    """Return the rows of files, each "FILE", whose rows name their adapter, or "ADAPTER=FILE".

    Of a row's images the first `max_images` are read, from paths relative to its file; with 0 none is. Raises
    InvalidArgumentError for a file that cannot be read, and when no row can.
    """
    rows: list[Labelled] = []
    problems: list[str] = []
    for one in given:
        adapter, equals, path = one.partition("=")
        if not equals or Path(one).exists():
            adapter, path = "", one
        for where, line in _lines(Path(path)):
            try:
                rows.append(_row(json.loads(line), adapter, Path(path).parent, max_images))
            except (ValueError, OSError, InvalidArgumentError) as error:
                problems.append(f"{where}: {error}")
    if not rows:
        first = f"; the first: {problems[0]}" if problems else ""
        raise InvalidArgumentError("data", f"no row of {', '.join(given)} could be read{first}")
    return LabelledRows(tuple(rows), tuple(problems))


def outcome(truth: str, ranked: Selection, weighed: Selection) -> Outcome:
    """Return the outcome of a prompt by two answers: one with many adapters, and one with weights for the first few."""
    ids = [one.adapter.adapter_id for one in ranked.matches]
    rank = ids.index(truth) + 1 if truth in ids else None
    best = weighed.matches
    return Outcome(truth, rank, tuple(one.adapter.adapter_id for one in best), tuple(one.weight for one in best))


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError("data", f"{file} cannot be read: {error}") from error
    return ((f"{file}:{number}", line) for number, line in enumerate(lines, start=1) if line.strip())


def _row(row: Any, adapter: str, folder: Path, max_images: int) -> Labelled:
    if not isinstance(row, dict):
        raise ValueError('a row must be an object {"query", "images", "adapter"}')
    named = adapter or row.get("adapter") or row.get("adapter_id") or row.get("lora_name")
    if not isinstance(named, str):
        raise ValueError('"adapter" must name the adapter that is right, or say ADAPTER=FILE')
    text, images = row.get("query", ""), row.get("images", [])
    if not isinstance(text, str) or not isinstance(images, list):
        raise ValueError('"query" must be a string and "images" a list of paths')
    parts = [ImagePart((folder / str(path)).read_bytes()) for path in images[:max_images]]
    return Labelled(check_adapter_id(named, "adapter"), Prompt.of(text, parts))
