"""Reads prompts whose adapter is known from JSONL: {"query": "...", "images": ["..."], "adapter": "adidas"} per row."""

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
class LabelledPrompt:
    """A prompt and the adapter it belongs to."""

    truth: str
    prompt: Prompt


@dataclass(frozen=True)
class LabelledPrompts:
    """The readable rows, and a sentence on each row that is not."""

    rows: tuple[LabelledPrompt, ...]
    problems: tuple[str, ...]


def read_labelled_prompts(sources: Sequence[str], max_images: int) -> LabelledPrompts:
    """Return the rows of files, each given as "FILE", whose rows name their adapter, or as "ADAPTER=FILE".

    At most `max_images` images of a row are read, from paths relative to its file. Raises InvalidArgumentError if a
    file cannot be read, or no row can.
    """
    rows: list[LabelledPrompt] = []
    problems: list[str] = []
    for source in sources:
        adapter, equals, path = source.partition("=")
        if not equals or Path(source).exists():  # a file name may contain "="
            adapter, path = "", source
        for where, line in _lines(Path(path)):
            try:
                rows.append(_row(json.loads(line), adapter, Path(path).parent, max_images))
            except (ValueError, OSError, InvalidArgumentError) as error:
                problems.append(f"{where}: {error}")
    if not rows:
        first = f"; the first: {problems[0]}" if problems else ""
        raise InvalidArgumentError("data", f"no row of {', '.join(sources)} could be read{first}")
    return LabelledPrompts(tuple(rows), tuple(problems))


def outcome_of(truth: str, ranked: Selection, weighed: Selection) -> Outcome:
    """Return the outcome of a prompt from two responses: one with many adapters, one with weights for the first few."""
    ids = [match.adapter.adapter_id for match in ranked.matches]
    rank = ids.index(truth) + 1 if truth in ids else None
    best = weighed.matches
    return Outcome(
        truth, rank, tuple(match.adapter.adapter_id for match in best), tuple(match.weight for match in best)
    )


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError("data", f"{file} cannot be read: {error}") from error
    return ((f"{file}:{number}", line) for number, line in enumerate(lines, start=1) if line.strip())


def _row(row: Any, adapter: str, folder: Path, max_images: int) -> LabelledPrompt:
    if not isinstance(row, dict):
        raise ValueError('a row must be an object {"query", "images", "adapter"}')
    truth = adapter or row.get("adapter") or row.get("adapter_id") or row.get("lora_name")
    if not isinstance(truth, str):
        raise ValueError('"adapter" must name the right adapter; or pass ADAPTER=FILE')
    text, images = row.get("query", ""), row.get("images") or []
    if not isinstance(text, str) or not isinstance(images, list):
        raise ValueError('"query" must be a string and "images" a list of paths')
    parts = [ImagePart((folder / str(path)).read_bytes()) for path in images[:max_images]]
    return LabelledPrompt(check_adapter_id(truth, "adapter"), Prompt.of(text, parts))
