"""From what a job calls its data to the files that it means, each with the hash of its content."""

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

SPLITS = ("train", "test", "validation", "dev")
_FOLDER_PATTERNS = ("test.jsonl", "*.jsonl", "*/test.jsonl")
MAX_DATASET_BYTES = 1 << 30
MAX_SPEC_BYTES = 4 << 20
_CHUNK_BYTES = 1 << 20


def find_file(path: str, roots: Sequence[Path], bases: Sequence[Path]) -> Path | None:
    """Return the file that `path` names, symlinks resolved, or None when there is none below `roots`.

    A relative path is tried below each base in turn; one that begins with `./../` below the base's parent.
    """
    return find_below(path, [root.resolve() for root in roots], bases)


def find_below(path: str, allowed: Sequence[Path], bases: Sequence[Path]) -> Path | None:
    """Do as `find_file`, for roots that are resolved already."""
    given = Path(path)
    _, is_above, rest = path.partition("./../") if path.startswith("./../") else ("", "", path)
    for base in bases:
        candidate = given if given.is_absolute() else (base.absolute().parent if is_above else base) / rest
        try:
            found = candidate.resolve()
            if found.is_file() and any(found.is_relative_to(root) for root in allowed):
                return found
        except (OSError, ValueError, RuntimeError):
            continue
    return None


def find_dataset(dataset: DatasetSpec, roots: Sequence[Path]) -> Path:
    """Return the JSONL file of a dataset, below the working folder or a root. Raises NotFoundError."""
    file = find_file(dataset.uri, roots, [Path.cwd(), *roots])
    if file is None:
        raise NotFoundError(
            f"dataset {dataset.name!r}: there is no file {_where(dataset, roots)}", dataset=dataset.name
        )
    return file


def resolve_datasets(spec: EvaluationSpec, roots: Sequence[Path], max_bytes: int = MAX_DATASET_BYTES) -> EvaluationSpec:
    """Return the job with one dataset for each file that its patterns and folders name, and with each file's SHA-256.

    What comes out is all that is needed to repeat the job on the same data. Raises NotFoundError for what names no
    file, FailedPreconditionError for a file whose content is not the one that the job names, InvalidArgumentError for
    two datasets of one name, for too many files, for files of more than `max_bytes` together, and for a description of
    more than MAX_SPEC_BYTES.
    """
    search = PatternSearch(roots)
    datasets = []
    for index, dataset in enumerate(spec.datasets):
        with field_path(f"datasets[{index}]"):
            datasets += expand_pattern(dataset, roots, search)
    files = [find_dataset(dataset, roots) for dataset in datasets]
    check_total_bytes(sum(map(byte_size_of, files)), max_bytes)
    settled = replace(spec, datasets=tuple(map(_with_hash, datasets, files)))
    _check_spec_bytes(settled)
    return settled


def _check_spec_bytes(spec: EvaluationSpec) -> None:
    """Raise InvalidArgumentError for a job whose description alone is a burden wherever jobs are listed."""
    byte_size = len(json.dumps(spec.to_json()))
    if byte_size > MAX_SPEC_BYTES:
        raise InvalidArgumentError(
            "datasets",
            f"the job's description has {byte_size:,} bytes, more than {MAX_SPEC_BYTES:,}: the paths and the adapters "
            "of its datasets (adapter_of is kept for each) are too many together; split the job up",
        )


def check_total_bytes(byte_size: int, max_bytes: int) -> None:
    """Raise InvalidArgumentError where the files of a job are too large to be read."""
    if byte_size > max_bytes:
        raise InvalidArgumentError(
            "datasets",
            f"the files of the datasets have {byte_size:,} bytes together, more than the {max_bytes:,} that a job may "
            "read here; split the job up, cut the files, or raise the orchestrator's max_dataset_bytes",
        )


def expand_pattern(
    dataset: DatasetSpec, roots: Sequence[Path], search: PatternSearch | None = None
) -> list[DatasetSpec]:
    """Return a dataset for each JSONL file that a pattern or a folder names, in the order of their paths.

    A folder stands for its `test.jsonl`, or where it has none for its `*.jsonl`, or else for the `test.jsonl` of each
    folder in it. In `adapter_id` {} becomes the file's name. Raises NotFoundError where there is none,
    InvalidArgumentError for a pattern that would take too long or names too many.
    """
    if not dataset.is_pattern or find_file(dataset.uri, roots, [Path.cwd(), *roots]):
        return [replace(dataset, adapter_id=dataset.adapter_id.replace("{}", dataset.name))]
    patterns = [dataset.uri + end for end in _FOLDER_PATTERNS] if dataset.uri.endswith("/") else [dataset.uri]
    search = search or PatternSearch(roots)
    for pattern in patterns:
        found = search.files(pattern)
        if found:
            return [_of_file(dataset, file) for file in found]
    raise NotFoundError(
        f"dataset {dataset.name!r}: no JSONL file matches {_where(dataset, roots)}", dataset=dataset.name
    )


def _of_file(dataset: DatasetSpec, file: Path) -> DatasetSpec:
    name = dataset_name(file)
    prefix = f"{dataset.name}." if dataset.name else ""
    return replace(dataset, name=prefix + name, uri=str(file), adapter_id=dataset.adapter_id.replace("{}", name))


def dataset_name(file: Path) -> str:
    """Return what a dataset is called: as its file, or as its folder where the file is called test.jsonl."""
    return file.resolve().parent.name if file.stem in SPLITS else file.stem


def byte_size_of(file: Path) -> int:
    """Return the bytes of a file; 0 where it went away, which is told where it is read."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


def file_sha256(file: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal; a file that has not been touched since is read once."""
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
        found = file_sha256(file)
    except OSError as error:
        raise NotFoundError(f"dataset {dataset.name!r}: {file} cannot be read: {error.strerror}") from error
    check_hash(dataset, file, found)
    return replace(dataset, sha256=found)


def changed_datasets(spec: EvaluationSpec, names: Iterable[str], roots: Sequence[Path]) -> set[str]:
    """Return those of the named datasets whose file no longer holds what the job names; one not seen here may do."""
    changed = set()
    for dataset in spec.datasets:
        if dataset.sha256 and dataset.name in names:
            with suppress(NotFoundError, OSError):
                if file_sha256(find_dataset(dataset, roots)) != dataset.sha256:
                    changed.add(dataset.name)
    return changed


def check_hash(dataset: DatasetSpec, file: Path, found: str) -> None:
    """Raise FailedPreconditionError when the file does not hold what the dataset says it holds."""
    if dataset.sha256 and found != dataset.sha256:
        raise FailedPreconditionError(
            f"dataset {dataset.name!r}: {file} has changed: its SHA-256 is {found}, the job names {dataset.sha256}. "
            "Bring the old file back, or leave sha256 out to evaluate on the new one",
            dataset=dataset.name,
        )


def _where(dataset: DatasetSpec, roots: Sequence[Path]) -> str:
    return f"{dataset.uri!r} below the dataset roots ({', '.join(str(root) for root in roots) or 'none is set'})"
