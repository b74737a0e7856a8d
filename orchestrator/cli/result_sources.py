"""Results named on the command line: a job's id, its folder, or a file."""

from __future__ import annotations

from dataclasses import replace
from glob import glob
from pathlib import Path

from infra.contract.errors import NotFoundError
from orchestrator.cli.job_client import is_folder, resolve_job
from orchestrator.cli.options.targets import OrchestratorTier
from orchestrator.evaluation.report.output_files import RECORDS_FILE
from orchestrator.evaluation.result_files import Results, parse_results, read_results
from orchestrator.evaluation.storage import read_text


def load_results(source: str, orchestrator: OrchestratorTier) -> Results:
    """Return the results of a file, a job's folder or a job's id. Raises NotFoundError."""
    if _is_file(source):
        return read_results(Path(source))
    return results_in(job_folder(source, orchestrator), source)


def result_files(argument: str) -> list[tuple[str, str]]:
    """Return the name and path of each result file that a file, a folder, a pattern or NAME=FILE stands for.

    A folder stands for its `*.jsonl`; a job's folder is one source. Raises NotFoundError if nothing matches.
    """
    name, equals, path = argument.partition("=")
    if not equals or Path(argument).exists():
        name, path = argument, argument
    if Path(path).is_file() or (Path(path) / RECORDS_FILE).is_file():
        return [(name, path)]
    pattern = f"{path.rstrip('/')}/*.jsonl" if Path(path).is_dir() else path
    matches = sorted(glob(pattern, recursive=True))
    if not matches:
        raise NotFoundError(f"{pattern}: no result file matches")
    return [(match, match) for match in matches]


def sources_in(argument: str) -> list[str]:
    """Return the result files of a folder; a job's folder, an id or a file is one source."""
    folder = Path(argument)
    if (folder / RECORDS_FILE).is_file() or not folder.is_dir():
        return [argument]
    return [str(file) for file in sorted(folder.glob("*.jsonl"))] or [argument]


def job_folder(source: str, orchestrator: OrchestratorTier) -> str:
    """Return the folder of a job named by its id, its path or its URI. Raises NotFoundError."""
    if is_folder(source):
        return source
    job_id = resolve_job(source, orchestrator)
    return orchestrator.call_evaluations(lambda client: client.get(job_id)).output_uri


def results_in(folder: str, source: str) -> Results:
    """Return the records in a job's folder; `source` names it in errors. Raises NotFoundError."""
    try:
        text = read_text(folder, RECORDS_FILE)
    except NotFoundError as error:
        raise NotFoundError(
            f"{source}: there is no {RECORDS_FILE} in {folder}; it is written when the job ends. Copy the folder here "
            "if it is on another machine"
        ) from error
    return replace(parse_results(text.encode(), source), source=source)


def _is_file(source: str) -> bool:
    """Return whether a source names a file, which may be missing, rather than a job."""
    path = Path(source)
    return path.is_file() or (bool(path.suffix) and "://" not in source and not path.is_dir())
