"""Parse a row of a dataset, a JSON value, into an episode."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.contract.adapter import ADAPTER_ID_PATTERN
from infra.contract.prompt import IMAGE_PLACEHOLDER
from orchestrator.evaluation.actions import split_actions
from orchestrator.evaluation.data.layouts import RowError, kind_of, unified
from orchestrator.evaluation.spec import DatasetSpec, PromptProtocol


@dataclass(frozen=True)
class Episode:
    """One row: an instruction, the screens in order, the true answer, and the actions in it.

    There is one action per screen, except in a whole answer, which may be any text (each line counts as an action) with
    any number of screens. `adapter_id` is the adapter trained for the row; empty: not known. `system` is the system
    message of its prompts; empty: none.
    """

    dataset: str
    episode_id: str
    instruction: str
    images: tuple[Path, ...]
    response: str
    actions: tuple[str, ...]
    line: int
    adapter_id: str = ""
    system: str = ""

    def protocol(self, requested: PromptProtocol) -> PromptProtocol:
        """Return the protocol under which a job that requests one asks this episode: without screens, as a whole."""
        return requested if self.images else PromptProtocol.SEQUENCE


def parse_row(
    dataset: DatasetSpec, line: int, row: object, protocol: PromptProtocol, find_image: Callable[[str], Path]
) -> Episode:
    """Return the episode in a row, a JSON value. Raises RowError if it is not valid for the dataset and protocol."""
    if not isinstance(row, dict):
        raise RowError(f"a row must be a JSON object, this is {kind_of(row)}")
    fields = unified(row)
    episode_id = _episode_id(fields, line)
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
    if names and protocol is not PromptProtocol.SEQUENCE and len(actions) != len(names):
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
        system=_text(fields, "system").strip() if fields.get("system") else "",
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


def _episode_id(fields: dict[str, Any], line: int) -> str:
    if "episode_id" not in fields:
        return f"line-{line}"
    if isinstance(fields.get("episode_id"), int) and not isinstance(fields["episode_id"], bool):
        return str(fields["episode_id"])
    return _text(fields, "episode_id").strip()


def _text(fields: dict[str, Any], name: str) -> str:
    value = _present(fields, name)
    if not isinstance(value, str):
        raise RowError(f"{name} must be a string, this is {kind_of(value)}")
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
    names: list[str] = fields["images"]
    for name in names:
        _check_unicode("images", name)
    return names


def _present(fields: dict[str, Any], name: str) -> Any:
    if name not in fields:
        raise RowError(f"{name} is missing")
    return fields[name]
