"""Parse a row of a JSONL file into an episode."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.contract.adapter import ADAPTER_ID_PATTERN
from infra.contract.prompt import IMAGE_PLACEHOLDER
from orchestrator.evaluation.actions import split_actions
from orchestrator.evaluation.spec import DatasetSpec, PromptProtocol


class RowError(Exception):
    """A row cannot be read; the message says why."""


@dataclass(frozen=True)
class Episode:
    """One row: an instruction, the screens in order, the true answer, and the actions in it.

    There is one action per screen, except in the sequence protocol: there the answer may be any text (each line counts
    as an action) and there may be no screens. `adapter_id` is the adapter trained for the row; empty: not known.
    """

    dataset: str
    episode_id: str
    instruction: str
    images: tuple[Path, ...]
    response: str
    actions: tuple[str, ...]
    line: int
    adapter_id: str = ""


def parse_row(
    dataset: DatasetSpec, line: int, row: bytes, protocol: PromptProtocol, find_image: Callable[[str], Path]
) -> Episode:
    """Return the episode in a row. Raises RowError if the row is not valid for the dataset and protocol."""
    fields = _fields(row)
    episode_id = _episode_id(fields)
    names = _image_names(fields)
    query = _text(fields, "query")
    placeholders = query.count(IMAGE_PLACEHOLDER)
    if placeholders != len(names):
        raise RowError(f"query has {placeholders} {IMAGE_PLACEHOLDER} for {len(names)} images; there must be one each")
    instruction = query.replace(IMAGE_PLACEHOLDER, "").strip()
    if not instruction:
        raise RowError(f"query has only {IMAGE_PLACEHOLDER}; it needs an instruction")
    response = _text(fields, "response").strip()
    actions = split_actions(response)
    if protocol is not PromptProtocol.SEQUENCE and len(actions) != len(names):
        raise RowError(
            f"response has {len(actions)} actions for {len(names)} images; the {protocol.value} protocol needs one "
            "each (the sequence protocol takes one whole answer with any number of images)"
        )
    return Episode(
        dataset=dataset.name,
        episode_id=episode_id,
        instruction=instruction,
        images=tuple(find_image(name) for name in names),
        response=response,
        actions=tuple(actions),
        line=line,
        adapter_id=_adapter_id(dataset, fields),
    )


def _adapter_id(dataset: DatasetSpec, fields: dict[str, Any]) -> str:
    """Return the adapter trained for a row: the dataset's, or the one that the row's `adapter_field` maps to."""
    if not dataset.adapter_field:
        return dataset.adapter_id
    value = _text(fields, dataset.adapter_field).strip()
    known = dict(dataset.adapter_of)
    if known and value not in known:
        raise RowError(
            f"{dataset.adapter_field} is {value[:40]!r}, which maps to no adapter; known values: {_first_names(known)}"
        )
    adapter_id = known.get(value, value)
    if not ADAPTER_ID_PATTERN.fullmatch(adapter_id):
        raise RowError(
            f"{dataset.adapter_field} is {adapter_id[:40]!r}, which is not a valid adapter id; map it to one"
        )
    return adapter_id


def _first_names(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)[:10])


def _fields(row: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(row.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RowError(f"not UTF-8: byte {error.start + 1} of the line") from error
    except json.JSONDecodeError as error:
        raise RowError(f"not JSON: {error.msg} at column {error.colno}") from error
    except (RecursionError, ValueError) as error:
        raise RowError("JSON is nested too deeply or has a number that is too long") from error
    if not isinstance(fields, dict):
        raise RowError(f"a row must be a JSON object, this is {_kind(fields)}")
    return fields


def _episode_id(fields: dict[str, Any]) -> str:
    if isinstance(fields.get("episode_id"), int) and not isinstance(fields["episode_id"], bool):
        return str(fields["episode_id"])
    return _text(fields, "episode_id").strip()


def _text(fields: dict[str, Any], name: str) -> str:
    value = _present(fields, name)
    if not isinstance(value, str):
        raise RowError(f"{name} must be a string, this is {_kind(value)}")
    if not value.strip():
        raise RowError(f"{name} is empty")
    _check_unicode(name, value)
    return value


def _check_unicode(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"{name} has half of a surrogate pair, which is not valid Unicode") from error


def _image_names(fields: dict[str, Any]) -> list[str]:
    value = fields.get("images", [])
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise RowError("images must be a list of paths")
    for image in value:
        _check_unicode("images", image)
    return value


def _present(fields: dict[str, Any], name: str) -> Any:
    if name not in fields:
        raise RowError(f"{name} is missing")
    return fields[name]


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
