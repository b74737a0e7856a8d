"""Datasets: JSONL files, one episode a row, read so that a bad row costs nothing but itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.contract.adapter import ADAPTER_ID_PATTERN
from infra.contract.errors import InvalidArgumentError, NotFoundError
from infra.contract.prompt import IMAGE_PLACEHOLDER
from orchestrator.evaluation.actions import split_actions
from orchestrator.evaluation.data.files import (
    MAX_DATASET_BYTES,
    byte_size_of,
    check_hash,
    find_below,
    find_dataset,
)
from orchestrator.evaluation.data.read_budget import MAX_IMAGE_BYTES, ReadBudget
from orchestrator.evaluation.spec import DatasetSpec, PromptProtocol


@dataclass(frozen=True)
class Episode:
    """One row: an instruction, the screens in order, the true answer, and the actions in it.

    There is one action a screen, but for `sequence`: there an answer may be any text (each line counts as an action),
    and there may be no screen. `adapter_id` is the adapter trained for the row, empty where not known.
    """

    dataset: str
    episode_id: str
    instruction: str
    images: tuple[Path, ...]
    response: str
    actions: tuple[str, ...]
    line: int
    adapter_id: str = ""


@dataclass(frozen=True)
class BadRow:
    """A row that could not be read: where it stands, counting lines from 1, and what is wrong with it."""

    file: str
    line: int
    problem: str


@dataclass(frozen=True)
class DatasetContent:
    """What a file holds: its episodes in order, its bad rows, and the SHA-256 of its bytes."""

    dataset: DatasetSpec
    file: Path
    sha256: str
    episodes: tuple[Episode, ...]
    bad_rows: tuple[BadRow, ...]


class _RowError(Exception):
    pass


def read_dataset(
    dataset: DatasetSpec,
    *,
    protocol: PromptProtocol,
    roots: Sequence[Path],
    image_root: Path | None = None,
    budget: ReadBudget | None = None,
) -> DatasetContent:
    """Return the episodes and bad rows of a JSONL file.

    The file is looked for below the working folder, then below each root. Image paths are looked for below the file's
    folder, the working folder, then `image_root`. Only files below `roots` are opened, symlinks resolved.

    Raises NotFoundError when the file itself cannot be read, FailedPreconditionError when it is not the content that
    the dataset names, InvalidArgumentError when it exceeds the budget.
    """
    budget = budget or ReadBudget()
    file = find_dataset(dataset, roots)
    find_image = _image_finder(roots, [file.parent, Path.cwd(), *([image_root] if image_root else [])])
    digest = hashlib.sha256()
    episodes: list[Episode] = []
    bad_rows: list[BadRow] = []
    line_of: dict[str, int] = {}
    for line, row in _rows(_lines(dataset, file, budget), digest.update):
        try:
            episode = _episode(dataset, line, row, protocol, find_image)
            if episode.episode_id in line_of:
                first = line_of[episode.episode_id]
                raise _RowError(f"episode_id {episode.episode_id!r} is used in line {first} already")
        except _RowError as error:
            bad_rows.append(BadRow(str(file), line, str(error)))
            budget.count_bad_row(f"{file}:{line}", str(error))
        else:
            line_of[episode.episode_id] = line
            episodes.append(episode)
    check_hash(dataset, file, digest.hexdigest())
    return DatasetContent(dataset, file, digest.hexdigest(), tuple(episodes), tuple(bad_rows))


def read_datasets(
    datasets: Sequence[DatasetSpec],
    *,
    protocol: PromptProtocol,
    roots: Sequence[Path],
    image_root: str = "",
    max_bytes: int = MAX_DATASET_BYTES,
) -> list[DatasetContent]:
    """Return what each file holds; `image_root`, where given, is a folder at or below one of `roots`.

    Raises NotFoundError for a file that cannot be read, InvalidArgumentError for an image root that is not allowed and
    for files of more than `max_bytes` together.
    """
    folder = _find_folder(image_root, roots) if image_root else None
    budget = ReadBudget(max_bytes)
    return [
        read_dataset(dataset, protocol=protocol, roots=roots, image_root=folder, budget=budget) for dataset in datasets
    ]


def _image_finder(roots: Sequence[Path], bases: Sequence[Path]) -> Callable[[str], Path]:
    allowed = [root.resolve() for root in roots]
    searched = ", ".join(dict.fromkeys(str(base) for base in bases))

    def find_image(name: str) -> Path:
        image = find_below(name, allowed, bases)
        if image is None:
            raise _RowError(f"image {name!r} is not there, or not below the dataset roots (looked in {searched})")
        if byte_size_of(image) > MAX_IMAGE_BYTES:
            raise _RowError(f"image {name!r} has more than {MAX_IMAGE_BYTES >> 20} MiB, too many to be sent")
        return image

    return find_image


def _find_folder(path: str, roots: Sequence[Path]) -> Path:
    for base in (Path.cwd(), *roots):
        with suppress(OSError, ValueError, RuntimeError):
            folder = (base / path).resolve()
            if folder.is_dir() and any(folder.is_relative_to(root.resolve()) for root in roots):
                return folder
    raise InvalidArgumentError("image_root", f"{path!r} is no folder below the dataset roots")


def _lines(dataset: DatasetSpec, file: Path, budget: ReadBudget) -> Iterator[bytes]:
    try:
        with file.open("rb") as content:
            yield from budget.lines(content)
    except OSError as error:
        raise NotFoundError(f"dataset {dataset.name!r}: {file} cannot be read: {error.strerror}") from error


def _rows(lines: Iterable[bytes], hash_line: Callable[[bytes], None]) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the bytes of every line that is not blank; all lines are hashed."""
    for number, line in enumerate(lines, start=1):
        hash_line(line)
        row = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if row.strip():
            yield number, row.removesuffix(b"\n")


def _episode(
    dataset: DatasetSpec, line: int, row: bytes, protocol: PromptProtocol, find_image: Callable[[str], Path]
) -> Episode:
    fields = _fields(row)
    episode_id = _episode_id(fields)
    names = _image_names(fields)
    query = _text(fields, "query")
    placeholders = query.count(IMAGE_PLACEHOLDER)
    if placeholders != len(names):
        raise _RowError(f"query has {placeholders} {IMAGE_PLACEHOLDER} for {len(names)} images; there must be one each")
    instruction = query.replace(IMAGE_PLACEHOLDER, "").strip()
    if not instruction:
        raise _RowError(f"query says nothing but {IMAGE_PLACEHOLDER}; it needs an instruction")
    response = _text(fields, "response").strip()
    actions = split_actions(response)
    if protocol is not PromptProtocol.SEQUENCE and len(actions) != len(names):
        raise _RowError(
            f"response has {len(actions)} actions for {len(names)} images; the {protocol.value} protocol needs one "
            "each (the sequence protocol asks for a whole answer at once, with any number of images)"
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
    """Return the adapter trained for a row: the dataset's, or the one that the row's field stands for."""
    if not dataset.adapter_field:
        return dataset.adapter_id
    value = _text(fields, dataset.adapter_field).strip()
    known = dict(dataset.adapter_of)
    if known and value not in known:
        raise _RowError(
            f"{dataset.adapter_field} is {value[:40]!r}, which stands for no adapter; known: {_some(known)}"
        )
    adapter_id = known.get(value, value)
    if not ADAPTER_ID_PATTERN.fullmatch(adapter_id):
        raise _RowError(f"{dataset.adapter_field} is {adapter_id[:40]!r}, which is no adapter id; map it to one")
    return adapter_id


def _some(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)[:10])


def _fields(row: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(row.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _RowError(f"not UTF-8: byte {error.start + 1} of the line") from error
    except json.JSONDecodeError as error:
        raise _RowError(f"not JSON: {error.msg} at column {error.colno}") from error
    except (RecursionError, ValueError) as error:
        raise _RowError("not JSON that can be read: nested too deeply, or a number too long") from error
    if not isinstance(fields, dict):
        raise _RowError(f"a row must be a JSON object, this is {_kind(fields)}")
    return fields


def _episode_id(fields: dict[str, Any]) -> str:
    if isinstance(fields.get("episode_id"), int) and not isinstance(fields["episode_id"], bool):
        return str(fields["episode_id"])
    return _text(fields, "episode_id").strip()


def _text(fields: dict[str, Any], name: str) -> str:
    value = _present(fields, name)
    if not isinstance(value, str):
        raise _RowError(f"{name} must be a string, this is {_kind(value)}")
    if not value.strip():
        raise _RowError(f"{name} is empty")
    _check_unicode(name, value)
    return value


def _check_unicode(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _RowError(f"{name} holds half a surrogate pair, which is no text") from error


def _image_names(fields: dict[str, Any]) -> list[str]:
    value = fields.get("images", [])
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise _RowError("images must be a list of paths")
    for image in value:
        _check_unicode("images", image)
    return value


def _present(fields: dict[str, Any], name: str) -> Any:
    if name not in fields:
        raise _RowError(f"{name} is missing")
    return fields[name]


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
