"""What a stopped run needs to go on, and what a running one says."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars


class State:
    """Named snapshots in a folder, written whole or not at all. They hold tensors and numbers only."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def load(self, name: str) -> Any | None:
        path = self._folder / f"{name}.pt"
        return torch.load(path, weights_only=True) if path.exists() else None

    def save(self, name: str, content: object) -> None:
        path = self._folder / f"{name}.pt"
        torch.save(content, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)


class Progress:
    """A bar per stage on a terminal; a line every half minute in a log."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._console = Console(file=sys.stderr)
        self._loss = ""

    def track(self, title: str, total: int, start: int = 0) -> Iterator[int]:
        """Yield the steps from `start` to `total` and show how far they are."""
        if self._quiet:
            yield from range(start, total)
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Bars(
            *columns, TimeRemainingColumn(), console=self._console, disable=not self._console.is_terminal
        ) as bars:
            task = bars.add_task(title, total=total, completed=start)
            begun = said = time.monotonic()
            for step in range(start, total):
                yield step
                bars.update(task, completed=step + 1, description=f"{title}{self._loss}")
                now = time.monotonic()
                if not self._console.is_terminal and (now - said > 30 or step + 1 == total):
                    self.note(f"{title}: {step + 1}/{total}{self._loss}, {now - begun:.0f} s")
                    said = now
        self._loss = ""

    def say(self, step: int, loss: float) -> None:
        """Set the number shown beside the bar."""
        self._loss = f", loss {loss:.3f}"

    def note(self, line: str) -> None:
        """Print a line that stays."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)
