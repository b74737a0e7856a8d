"""The state that resumes an interrupted run, and the progress of a running one."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars


class State:
    """Named snapshots in a folder, written atomically. They contain tensors and numbers only."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def load(self, name: str) -> Any | None:
        """Return a snapshot, or None if it does not exist."""
        path = self._folder / f"{name}.pt"
        return torch.load(path, weights_only=True) if path.exists() else None

    def save(self, name: str, content: object) -> None:
        """Write a snapshot."""
        path = self._folder / f"{name}.pt"
        torch.save(content, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)


class Journal:
    """Seconds of each part and scores of each adapter's rounds, persisted for resumed runs."""

    def __init__(self, path: Path, seed: int, device: str) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.entries: dict[str, float] = {}
        self.rounds: dict[str, list[float]] = {}
        if path.exists():
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["seed"] != seed:
                raise ValueError(
                    f"{path.parents[1]} was started with --seed {content['seed']}, not {seed}; "
                    "use that seed or another --output"
                )
            self.entries = content["seconds"]
            self.rounds = content["rounds"]
        self._head = {"seed": seed, "device": device}

    def add(self, name: str, seconds: float) -> None:
        """Add time spent on `name`; interrupted attempts count too."""
        self.entries[name] = round(self.entries.get(name, 0.0) + seconds, 1)
        content = {**self._head, "seconds": self.entries, "rounds": self.rounds}
        self._path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def add_round(self, adapter_id: str, score: float, seconds: float) -> None:
        """Add a finished round of an adapter: its share of right answers and its seconds."""
        self.rounds[adapter_id] = [*self.rounds.get(adapter_id, []), round(score, 4)]
        self.add(f"adapters/{adapter_id}", seconds)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the time spent in the block to `name`."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.add(name, time.monotonic() - started)


class Progress:
    """A progress bar per stage on a terminal, or a line every half minute in a log."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._console = Console(file=sys.stderr)
        self._loss = ""

    def track(self, title: str, total: int, start: int = 0) -> Iterator[int]:
        """Yield the steps from `start` to `total` and show the progress."""
        if self._quiet:
            yield from range(start, total)
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Bars(
            *columns, TimeRemainingColumn(), console=self._console, disable=not self._console.is_terminal
        ) as bars:
            task = bars.add_task(title, total=total, completed=start)
            started = printed = time.monotonic()
            for step in range(start, total):
                yield step
                bars.update(task, completed=step + 1, description=f"{title}{self._loss}")
                now = time.monotonic()
                if not self._console.is_terminal and (now - printed > 30 or step + 1 == total):
                    self.note(f"{title}: {step + 1}/{total}{self._loss}, {now - started:.0f} s")
                    printed = now
        self._loss = ""

    def say(self, step: int, loss: float) -> None:
        """Set the loss shown next to the bar."""
        self._loss = f", loss {loss:.3f}"

    def note(self, line: str) -> None:
        """Print a permanent line."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)
