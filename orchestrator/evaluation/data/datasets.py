"""Read datasets: files with one episode a row, JSONL or a JSON array. A bad row does not affect the other rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from infra.contract.errors import InvalidArgumentError, NotFoundError
from orchestrator.evaluation.data.files import (
    MAX_DATASET_BYTES,
    byte_size_of,
    check_hash,
    check_total_bytes,
    find_below,
    find_dataset,
)
from orchestrator.evaluation.data.image_files import MAX_IMAGE_BYTES
from orchestrator.evaluation.data.json_rows import json_rows
from orchestrator.evaluation.data.layouts import RowError
from orchestrator.evaluation.data.rows import Episode, parse_row
from orchestrator.evaluation.spec import DatasetSpec, PromptProtocol

MAX_BAD_ROWS = 100_000
"""With more bad rows the files are most likely not datasets; their list would only fill memory."""


@dataclass(frozen=True)
class BadRow:
    """A row that could not be read: its file, its line from 1, and what is wrong with it."""

    file: str
    line: int
    problem: str


@dataclass(frozen=True)
class DatasetContent:
    """The content of a dataset's file: its episodes in order, its bad rows, and the SHA-256 of its bytes."""

    dataset: DatasetSpec
    file: Path
    sha256: str
    episodes: tuple[Episode, ...]
    bad_rows: tuple[BadRow, ...]


class ReadBudget:
    """Limits shared by all datasets of a job: `max_bytes` of files and MAX_BAD_ROWS bad rows."""

    def __init__(self, max_bytes: int = MAX_DATASET_BYTES) -> None:
        self._max_bytes = max_bytes
        self._byte_size = 0
        self._bad_rows = 0

    def lines(self, content: BinaryIO) -> Iterator[bytes]:
        """Yield the lines of a file. Raises InvalidArgumentError once more than `max_bytes` were read."""
        while line := content.readline(self._max_bytes - self._byte_size + 1):
            self._byte_size += len(line)
            check_total_bytes(self._byte_size, self._max_bytes)
            yield line

    def count_bad_row(self, where: str, problem: str) -> None:
        """Count a bad row. Raises InvalidArgumentError beyond MAX_BAD_ROWS."""
        self._bad_rows += 1
        if self._bad_rows > MAX_BAD_ROWS:
            raise InvalidArgumentError(
                "datasets",
                f"more than {MAX_BAD_ROWS:,} rows cannot be read; are these JSONL files of episodes? "
                f"The last is {where}: {problem}",
            )


def read_dataset(
    dataset: DatasetSpec,
    *,
    protocol: PromptProtocol,
    roots: Sequence[Path],
    image_root: Path | None = None,
    budget: ReadBudget | None = None,
) -> DatasetContent:
    """Return the episodes and bad rows of a JSONL file.

    The file is searched in the working folder, then in each root; images in the file's folder, the working folder,
    then `image_root`. Only files below `roots` are opened, after resolving symlinks.

    Raises:
        NotFoundError: the file cannot be read.
        FailedPreconditionError: the content does not have the SHA-256 that the dataset gives.
        InvalidArgumentError: the file exceeds the budget.
    """
    budget = budget or ReadBudget()
    file = find_dataset(dataset, roots)
    find_image = _image_finder(roots, [file.parent, Path.cwd(), *([image_root] if image_root else [])])
    digest = hashlib.sha256()
    episodes: list[Episode] = []
    bad_rows: list[BadRow] = []
    line_of: dict[str, int] = {}
    for row in json_rows(_hashed(_lines(dataset, file, budget), digest.update)):
        line = row.line
        try:
            if row.problem:
                raise RowError(row.problem)
            episode = parse_row(dataset, line, row.value, protocol, find_image)
            if episode.episode_id in line_of:
                first = line_of[episode.episode_id]
                raise RowError(f"episode_id {episode.episode_id!r} is already used in line {first}")
        except RowError as error:
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
    """Return the content of each dataset's file. `image_root`, if given, is a folder at or below one of `roots`.

    Raises:
        NotFoundError: a file cannot be read.
        FailedPreconditionError: a file does not have the SHA-256 that its dataset gives.
        InvalidArgumentError: the image root is not allowed, or the files have more than `max_bytes` in total.
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
            raise RowError(f"image {name!r} does not exist or is not below the dataset roots (searched {searched})")
        if byte_size_of(image) > MAX_IMAGE_BYTES:
            raise RowError(f"image {name!r} has more than {MAX_IMAGE_BYTES >> 20} MiB and cannot be sent")
        return image

    return find_image


def _find_folder(path: str, roots: Sequence[Path]) -> Path:
    for base in (Path.cwd(), *roots):
        with suppress(OSError, ValueError, RuntimeError):
            folder = (base / path).resolve()
            if folder.is_dir() and any(folder.is_relative_to(root.resolve()) for root in roots):
                return folder
    raise InvalidArgumentError("image_root", f"{path!r} is not a folder below the dataset roots")


def _lines(dataset: DatasetSpec, file: Path, budget: ReadBudget) -> Iterator[bytes]:
    try:
        with file.open("rb") as content:
            yield from budget.lines(content)
    except OSError as error:
        raise NotFoundError(f"dataset {dataset.name!r}: {file} cannot be read: {error.strerror}") from error


def _hashed(lines: Iterable[bytes], hash_line: Callable[[bytes], None]) -> Iterator[bytes]:
    for line in lines:
        hash_line(line)
        yield line
