"""Resolve a job's datasets to files on disk, each with the SHA-256 of its content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from infra.contract.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, field_path
from orchestrator.evaluation.data.patterns import PatternSearch
from orchestrator.evaluation.spec import DatasetSpec, EvaluationSpec

_SPLITS = ("train", "test", "validation", "dev")
_FOLDER_PATTERNS = ("test.jsonl", "*.jsonl", "*/test.jsonl")
MAX_DATASET_BYTES = 1 << 30
MAX_SPEC_BYTES = 4 << 20
"""Every listing of jobs reads each job's spec, so its JSON is bounded."""
_CHUNK_BYTES = 1 << 20


def find_file(path: str, roots: Sequence[Path], bases: Sequence[Path]) -> Path | None:
    """Return the file at `path` with symlinks resolved, or None if there is no file below `roots`.

    A relative path is tried below each base in turn; one that starts with `./../` below the base's parent.
    """
    return find_below(path, [root.resolve() for root in roots], bases)


def find_below(path: str, allowed: Sequence[Path], bases: Sequence[Path]) -> Path | None:
    """Behave like `find_file`, for roots that are already resolved."""
    given = Path(path)
    _, is_above, rest = path.partition("./../") if path.startswith("./../") else ("", "", path)
    for base in bases:
        candidate = given if given.is_absolute() else (base.absolute().parent if is_above else base) / rest
        try:
            resolved = candidate.resolve()
            if resolved.is_file() and any(resolved.is_relative_to(root) for root in allowed):
                return resolved
        except (OSError, ValueError, RuntimeError):
            continue
    return None


def find_dataset(dataset: DatasetSpec, roots: Sequence[Path]) -> Path:
    """Return the JSONL file of a dataset, below the working folder or a root. Raises NotFoundError."""
    file = find_file(dataset.uri, roots, [Path.cwd(), *roots])
    if file is None:
        raise NotFoundError(f"dataset {dataset.name!r}: no file {_where(dataset, roots)}", dataset=dataset.name)
    return file


def resolve_datasets(spec: EvaluationSpec, roots: Sequence[Path], max_bytes: int = MAX_DATASET_BYTES) -> EvaluationSpec:
    """Expand folders and patterns to one dataset per file, and add each file's SHA-256.

    The result holds everything needed to repeat the job on the same data.

    Raises:
        NotFoundError: a dataset matches no file.
        FailedPreconditionError: a file's content does not have the SHA-256 that the job gives.
        InvalidArgumentError: two datasets have one name, or the job exceeds a limit: the number of files, `max_bytes`
            of files in total, or MAX_SPEC_BYTES of JSON.
    """
    search = PatternSearch(roots)
    datasets = []
    for index, dataset in enumerate(spec.datasets):
        with field_path(f"datasets[{index}]"):
            datasets += expand_pattern(dataset, roots, search)
    files = [find_dataset(dataset, roots) for dataset in datasets]
    check_total_bytes(sum(map(byte_size_of, files)), max_bytes)
    resolved = replace(spec, datasets=tuple(map(_with_hash, datasets, files)))
    _check_spec_bytes(resolved)
    return resolved


def _check_spec_bytes(spec: EvaluationSpec) -> None:
    """Raise InvalidArgumentError if the job's spec exceeds MAX_SPEC_BYTES as JSON."""
    byte_size = len(json.dumps(spec.to_json()))
    if byte_size > MAX_SPEC_BYTES:
        raise InvalidArgumentError(
            "datasets",
            f"the job's description has {byte_size:,} bytes, more than {MAX_SPEC_BYTES:,}: its datasets have too many "
            "paths and adapters in total (each dataset holds its own copy of adapter_of); split the job",
        )


def check_total_bytes(byte_size: int, max_bytes: int) -> None:
    """Raise InvalidArgumentError if the files of a job have more than `max_bytes` in total."""
    if byte_size > max_bytes:
        raise InvalidArgumentError(
            "datasets",
            f"the files of the datasets have {byte_size:,} bytes in total, more than the limit of {max_bytes:,}; "
            "split the job, shorten the files, or raise the orchestrator's max_dataset_bytes",
        )


def expand_pattern(
    dataset: DatasetSpec, roots: Sequence[Path], search: PatternSearch | None = None
) -> list[DatasetSpec]:
    """Return one dataset for each JSONL file that a folder or pattern matches, ordered by path.

    A folder means its `test.jsonl`; without one, its `*.jsonl`; without those, `*/test.jsonl`. {} in `adapter_id` is
    replaced by the file's name.

    Raises:
        NotFoundError: no file matches.
        InvalidArgumentError: the search exceeds its limits on entries or files.
    """
    if not dataset.is_pattern or find_file(dataset.uri, roots, [Path.cwd(), *roots]):
        return [replace(dataset, adapter_id=dataset.adapter_id.replace("{}", dataset.name))]
    patterns = [dataset.uri + end for end in _FOLDER_PATTERNS] if dataset.uri.endswith("/") else [dataset.uri]
    search = search or PatternSearch(roots)
    for pattern in patterns:
        matches = search.files(pattern)
        if matches:
            return [_for_file(dataset, file) for file in matches]
    raise NotFoundError(
        f"dataset {dataset.name!r}: no JSONL file matches {_where(dataset, roots)}", dataset=dataset.name
    )


def _for_file(dataset: DatasetSpec, file: Path) -> DatasetSpec:
    name = dataset_name(file)
    prefix = f"{dataset.name}." if dataset.name else ""
    return replace(dataset, name=prefix + name, uri=str(file), adapter_id=dataset.adapter_id.replace("{}", name))


def dataset_name(file: Path) -> str:
    """Return a dataset's default name: the file's stem, or its folder's name if the stem is a split such as "test"."""
    return file.resolve().parent.name if file.stem in _SPLITS else file.stem


def byte_size_of(file: Path) -> int:
    """Return the size of a file in bytes; 0 if it has disappeared, which reading it will report."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


def file_sha256(file: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits, cached by path, modification time and size."""
    status = file.stat()
    return _sha256(file, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=1 << 16)
def _sha256(file: Path, _modified_ns: int, _byte_size: int) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while chunk := content.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _with_hash(dataset: DatasetSpec, file: Path) -> DatasetSpec:
    try:
        sha256 = file_sha256(file)
    except OSError as error:
        raise NotFoundError(f"dataset {dataset.name!r}: {file} cannot be read: {error.strerror}") from error
    check_hash(dataset, file, sha256)
    return replace(dataset, sha256=sha256)


def changed_datasets(spec: EvaluationSpec, names: Iterable[str], roots: Sequence[Path]) -> set[str]:
    """Return the named datasets whose file no longer has the job's SHA-256. Files not visible here are skipped."""
    changed = set()
    for dataset in spec.datasets:
        if dataset.sha256 and dataset.name in names:
            with suppress(NotFoundError, OSError):
                if file_sha256(find_dataset(dataset, roots)) != dataset.sha256:
                    changed.add(dataset.name)
    return changed


def check_hash(dataset: DatasetSpec, file: Path, sha256: str) -> None:
    """Raise FailedPreconditionError if the file's SHA-256 is not the one that the dataset gives."""
    if dataset.sha256 and sha256 != dataset.sha256:
        raise FailedPreconditionError(
            f"dataset {dataset.name!r}: {file} has changed: its SHA-256 is {sha256}, the job expects {dataset.sha256}. "
            "Restore the old file, or leave out sha256 to evaluate on the new one",
            dataset=dataset.name,
        )


def _where(dataset: DatasetSpec, roots: Sequence[Path]) -> str:
    return f"{dataset.uri!r} below the dataset roots ({', '.join(str(root) for root in roots) or 'none are set'})"
