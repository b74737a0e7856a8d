"""Find the files that a glob pattern matches below the dataset roots, with a bounded search."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from infra.contract.errors import InvalidArgumentError
from orchestrator.evaluation.spec import MAX_DATASETS

MAX_ENTRIES = 1_000_000
"""Files and folders examined per job: bounds the time that a pattern such as "/**" may take."""

MAX_PATTERN_CHARACTERS = 4096
"""PATH_MAX on Linux: a longer pattern matches nothing."""

_EVERY_DEPTH = "**"
_SUFFIX = ".jsonl"

_WILDCARD = re.compile(r"[*?\[]")


class PatternSearch:
    """Finds the JSONL files below `roots` that patterns match.

    All patterns of one search share its limits: `max_entries` files and folders examined, and `max_files` matches.
    """

    def __init__(self, roots: Sequence[Path], *, max_entries: int = MAX_ENTRIES, max_files: int = MAX_DATASETS) -> None:
        # The root "/" is not a base: there a relative pattern would equal an absolute one.
        self._bases = [Path.cwd(), *(root for root in roots if root != root.parent)]
        self._allowed = [root.resolve() for root in roots]
        self._max_entries, self._entries = max_entries, 0
        self._max_files, self._files = max_files, 0

    def files(self, pattern: str) -> list[Path]:
        """Return the files that a pattern matches, with symlinks resolved, ordered by path.

        A relative pattern is tried in the working folder, then in each root; the first base with a match counts. `*`,
        `?` and `[...]` match within one name and never a leading dot; `**` matches any number of folders that are not
        symlinks. Raises InvalidArgumentError for `..` after a wildcard and when a limit is exceeded.
        """
        if "\0" in pattern or len(pattern) > MAX_PATTERN_CHARACTERS:
            return []
        for folder, parts in dict.fromkeys(_split(base / pattern) for base in self._bases):
            start = self._below(folder)
            matches = sorted(self._matches(start, parts)) if start is not None else []
            if matches:
                return matches
        return []

    def _matches(self, start: Path, parts: Sequence[str]) -> set[Path]:
        matches: set[Path] = set()
        for path in self._walk(start, parts):
            file = self._below(path) if path.suffix == _SUFFIX else None
            if file is not None and file not in matches and file.suffix == _SUFFIX and file.is_file():
                matches.add(file)
                self._files += 1
                if self._files > self._max_files:
                    raise InvalidArgumentError(
                        "uri",
                        f"more than {self._max_files:,} files match, the limit of a job; "
                        "narrow the pattern, or split the job",
                    )
        return matches

    def _walk(self, start: Path, parts: Sequence[str]) -> Iterator[Path]:
        """Yield the paths that the parts of a pattern match below a folder: files, and possibly folders."""
        visited = pending = {(start, 0)}
        while pending:
            following: set[tuple[Path, int]] = set()
            for folder, index in pending:
                part = parts[index]
                if index + 1 == len(parts):
                    yield from self._match_part(folder, part)
                elif part == _EVERY_DEPTH:
                    following.add((folder, index + 1))
                    following |= {(inner, index) for inner in self._scan(folder, _is_plain_folder)}
                else:
                    inner_folders = map(self._enter, self._match_part(folder, part))
                    following |= {(inner, index + 1) for inner in inner_folders if inner is not None}
            pending = following - visited
            visited |= pending

    def _match_part(self, folder: Path, part: str) -> Iterator[Path]:
        """Yield the entries of a folder that one part of a pattern, other than `**`, matches."""
        if not _WILDCARD.search(part):
            self._count_entry()
            yield folder / part
            return
        matches = re.compile(fnmatch.translate(part)).match
        hidden = part.startswith(".")
        yield from self._scan(folder, lambda entry: (hidden or entry.name[0] != ".") and bool(matches(entry.name)))

    def _scan(self, folder: Path, accepts: Callable[[os.DirEntry[str]], bool]) -> Iterator[Path]:
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    self._count_entry()
                    if accepts(entry):
                        yield folder / entry.name
        except OSError:
            return

    def _count_entry(self) -> None:
        self._entries += 1
        if self._entries > self._max_entries:
            raise InvalidArgumentError(
                "uri",
                f"more than {self._max_entries:,} files and folders would have to be examined; "
                "start the pattern with the folder that holds the datasets, and avoid '**'",
            )

    def _enter(self, path: Path) -> Path | None:
        """Return the folder at `path` with its symlink resolved; None if it is not a folder below the roots."""
        folder = self._below(path) if path.is_symlink() else path
        return folder if folder is not None and folder.is_dir() else None

    def _below(self, path: Path) -> Path | None:
        """Return a path with its symlinks resolved; None if it is then not below the roots."""
        try:
            resolved = path.resolve()
        except (OSError, RuntimeError):
            return None
        return resolved if any(resolved.is_relative_to(root) for root in self._allowed) else None


def _split(pattern: Path) -> tuple[Path, tuple[str, ...]]:
    """Return the folder before a pattern's first wildcard, and the parts from the wildcard on."""
    parts = pattern.parts
    first = next((index for index, part in enumerate(parts) if _WILDCARD.search(part)), len(parts) - 1)
    rest = parts[first:]
    if ".." in rest:
        raise InvalidArgumentError("uri", f"{str(pattern)[-100:]!r} has '..' after a wildcard; leave it out")
    at_every_depth = rest[-1] == _EVERY_DEPTH
    once = [part for part, following in zip(rest, (*rest[1:], ""), strict=True) if (part, following) != ("**", "**")]
    return Path(*parts[:first]), (*once, "*") if at_every_depth else tuple(once)


def _is_plain_folder(entry: os.DirEntry[str]) -> bool:
    return entry.name[0] != "." and entry.is_dir(follow_symlinks=False)
