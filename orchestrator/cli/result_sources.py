"""Results that commands are given: a job's id, its folder, or a file."""

from __future__ import annotations

from dataclasses import replace
from glob import glob
from pathlib import Path

from infra.contract.errors import NotFoundError
from orchestrator.cli.commands.jobs import called, is_folder
from orchestrator.evaluation.report.output_files import RECORDS_FILE
from orchestrator.evaluation.result_files import Results, parse_results, read_results
from orchestrator.evaluation.storage import read_text


def results_of(source: str, orchestrator_target: str = "") -> Results:
    """Return the results that a file, a job's folder or a job's id stands for. Raises NotFoundError."""
    path = Path(source)
    if path.is_file() or (path.suffix and "://" not in source and not path.is_dir()):
        return read_results(path)
    return results_in(folder_of(source, orchestrator_target), source)


def result_files(given: str) -> list[tuple[str, str]]:
    """Return what a file, a folder, a pattern or NAME=FILE stands for: each file of results, and what it is called.

    A folder stands for its `*.jsonl`; that of a job is one source. Raises NotFoundError for what matches nothing.
    """
    name, equals, path = given.partition("=")
    if not equals or Path(given).exists():
        name, path = given, given
    if Path(path).is_file() or (Path(path) / RECORDS_FILE).is_file():
        return [(name, path)]
    pattern = f"{path.rstrip('/')}/*.jsonl" if Path(path).is_dir() else path
    matches = sorted(glob(pattern, recursive=True))
    if not matches:
        raise NotFoundError(f"{pattern}: there is no such file of results")
    return [(match, match) for match in matches]


def sources_in(given: str) -> list[str]:
    """Return a folder's files of results, where it is one of such files and not a job's; anything else is itself."""
    folder = Path(given)
    if (folder / RECORDS_FILE).is_file() or not folder.is_dir():
        return [given]
    return [str(file) for file in sorted(folder.glob("*.jsonl"))] or [given]


def folder_of(source: str, orchestrator_target: str = "") -> str:
    """Return the folder of a job that is named by its id or by its folder, a path or a URI. Raises NotFoundError."""
    if is_folder(source):
        return source
    return called(orchestrator_target, lambda client: client.get(source)).output_uri


def results_in(folder: str, source: str) -> Results:
    """Return the records in a job's folder; `source` is what errors call it. Raises NotFoundError."""
    try:
        text = read_text(folder, RECORDS_FILE)
    except NotFoundError as error:
        raise NotFoundError(
            f"{source}: there is no {RECORDS_FILE} in {folder} to be read here; it is written when the job ends, copy "
            "the folder here where it is on another machine"
        ) from error
    return replace(parse_results(text.encode(), source), source=source)
