"""Which files a pattern names: a walk below the dataset roots that begins at the first wildcard, and that ends."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from infra.contract.errors import InvalidArgumentError
from orchestrator.evaluation.spec import MAX_DATASETS

MAX_ENTRIES = 1_000_000
MAX_PATTERN_CHARACTERS = 4096
EVERY_DEPTH = "**"
SUFFIX = ".jsonl"

_WILDCARD = re.compile(r"[*?\[]")


class PatternSearch:
    """Finds the JSONL files below `roots` that patterns name.

    All patterns that one search is asked for share its limits: `max_entries` files and folders looked at, and
    `max_files` found.
    """

    def __init__(self, roots: Sequence[Path], *, max_entries: int = MAX_ENTRIES, max_files: int = MAX_DATASETS) -> None:
        # What a relative pattern means below / is what an absolute one says.
        self._bases = [Path.cwd(), *(root for root in roots if root != root.parent)]
        self._allowed = [root.resolve() for root in roots]
        self._max_entries, self._entries = max_entries, 0
        self._max_files, self._files = max_files, 0

    def files(self, pattern: str) -> list[Path]:
        """Return the files that a pattern names, symlinks resolved, in the order of their paths.

        A relative pattern is tried in the working folder, then in each root, and is that of the first with a match.
        `*`, `?` and `[...]` stand within one name and not for a dot at its beginning; `**` stands for any number of
        folders that are not symlinks. Raises InvalidArgumentError for `..` behind a wildcard, and at either limit.
        """
        if "\0" in pattern or len(pattern) > MAX_PATTERN_CHARACTERS:
            return []
        for folder, parts in dict.fromkeys(_split(base / pattern) for base in self._bases):
            start = self._below(folder)
            found = sorted(self._matches(start, parts)) if start is not None else []
            if found:
                return found
        return []

    def _matches(self, start: Path, parts: Sequence[str]) -> set[Path]:
        found: set[Path] = set()
        for path in self._walk(start, parts):
            file = self._below(path) if path.suffix == SUFFIX else None
            if file is not None and file not in found and file.suffix == SUFFIX and file.is_file():
                found.add(file)
                self._files += 1
                if self._files > self._max_files:
                    raise InvalidArgumentError(
                        "uri",
                        f"more than {self._max_files:,} files match, which is more than a job may have; "
                        "narrow the pattern down, or split the job up",
                    )
        return found

    def _walk(self, start: Path, parts: Sequence[str]) -> Iterator[Path]:
        """Yield what the parts of a pattern name below a folder: the files, and perhaps folders."""
        begun = pending = {(start, 0)}
        while pending:
            following: set[tuple[Path, int]] = set()
            for folder, index in pending:
                part = parts[index]
                if index + 1 == len(parts):
                    yield from self._named(folder, part)
                elif part == EVERY_DEPTH:
                    following.add((folder, index + 1))
                    following |= {(inner, index) for inner in self._scan(folder, _is_plain_folder)}
                else:
                    inside = map(self._entered, self._named(folder, part))
                    following |= {(inner, index + 1) for inner in inside if inner is not None}
            pending = following - begun
            begun |= pending

    def _named(self, folder: Path, part: str) -> Iterator[Path]:
        """Yield what one part of a pattern, other than `**`, names in a folder."""
        if not _WILDCARD.search(part):
            self._look_at_one()
            yield folder / part
            return
        matches = re.compile(fnmatch.translate(part)).match
        hidden = part.startswith(".")
        yield from self._scan(folder, lambda entry: (hidden or entry.name[0] != ".") and bool(matches(entry.name)))

    def _scan(self, folder: Path, wanted: Callable[[os.DirEntry[str]], bool]) -> Iterator[Path]:
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    self._look_at_one()
                    if wanted(entry):
                        yield folder / entry.name
        except OSError:
            return

    def _look_at_one(self) -> None:
        self._entries += 1
        if self._entries > self._max_entries:
            raise InvalidArgumentError(
                "uri",
                f"more than {self._max_entries:,} files and folders would have to be looked at; "
                "begin the pattern with the folder that holds the datasets, and avoid '**'",
            )

    def _entered(self, path: Path) -> Path | None:
        """Return what lies in a folder below the roots where it is a folder below them too, its symlink resolved."""
        folder = self._below(path) if path.is_symlink() else path
        return folder if folder is not None and folder.is_dir() else None

    def _below(self, path: Path) -> Path | None:
        """Return a path with its symlinks resolved; None where that is not below the roots."""
        try:
            resolved = path.resolve()
        except (OSError, RuntimeError):
            return None
        return resolved if any(resolved.is_relative_to(root) for root in self._allowed) else None


def _split(pattern: Path) -> tuple[Path, tuple[str, ...]]:
    """Return the folder before a pattern's first wildcard, and the parts from there on."""
    parts = pattern.parts
    first = next((index for index, part in enumerate(parts) if _WILDCARD.search(part)), len(parts) - 1)
    rest = parts[first:]
    if ".." in rest:
        raise InvalidArgumentError("uri", f"{str(pattern)[-100:]!r} has '..' behind a wildcard; leave it out")
    at_every_depth = rest[-1] == EVERY_DEPTH
    once = [part for part, following in zip(rest, (*rest[1:], ""), strict=True) if (part, following) != ("**", "**")]
    return Path(*parts[:first]), (*once, "*") if at_every_depth else tuple(once)


def _is_plain_folder(entry: os.DirEntry[str]) -> bool:
    return entry.name[0] != "." and entry.is_dir(follow_symlinks=False)
