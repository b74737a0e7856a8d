"""The recipe from end to end: base, adapters, embedder, card. Each stage is skipped when its result is complete."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import torch

from examples.pocket_phone.apps import ADAPTER_IDS
from examples.pocket_phone.recipe import adapters, base, card, jina
from examples.pocket_phone.recipe.state import Progress, State

STATE = ".state"
"""Folder below the output that holds what a stopped run needs to go on; it can be deleted when all is done."""


def train(output: Path, stage: str, device: str, workers: int, seed: int) -> None:
    """Run `stage` or all stages into `output`.

    Raises ValueError for a seed that differs from the one `output` was begun with, fewer workers than one, a device
    that is not there, or a stage whose predecessor is missing.
    """
    if workers < 1:
        raise ValueError(f"--workers must be at least 1, got {workers}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this machine has no CUDA device that torch can use; leave the option out")
    torch.set_num_threads(1)
    output.mkdir(parents=True, exist_ok=True)
    journal = Journal(output / STATE / "journal.json", seed, device)
    progress = Progress()
    if stage in {"base", "all"}:
        _whole(
            output / "base", lambda folder: base.train(folder, State(output / STATE), seed, device, progress), journal
        )
    if stage in {"adapters", "all"}:
        _need(output / "base", "base")
        _adapters(output, journal, seed, device, workers=workers, progress=progress)
    if stage in {"jina", "all"}:
        _whole(
            output / "jina_v4",
            lambda folder: jina.train(folder, State(output / STATE), seed, device, progress),
            journal,
        )
    if stage in {"card", "all"}:
        for name, previous in (("base", "base"), ("adapters", "adapters"), ("jina_v4", "jina")):
            _need(output / name, previous)
        card.write(output, seed, device, journal.entries, progress)


class Journal:
    """How long each part took, kept beside the checkpoints so that a resumed run still knows."""

    def __init__(self, path: Path, seed: int, device: str) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.entries: dict[str, float] = {}
        if path.exists():
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["seed"] != seed:
                raise ValueError(
                    f"{path.parents[1]} was begun with --seed {content['seed']}, not {seed}; "
                    "use that seed or another --output"
                )
            self.entries = content["seconds"]
        self._head = {"seed": seed, "device": device}

    def add(self, name: str, seconds: float) -> None:
        """Add time spent on `name`; a stopped attempt counts as well."""
        self.entries[name] = round(self.entries.get(name, 0.0) + seconds, 1)
        self._path.write_text(json.dumps({**self._head, "seconds": self.entries}, indent=2) + "\n", encoding="utf-8")

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        begun = time.monotonic()
        try:
            yield
        finally:
            self.add(name, time.monotonic() - begun)


def _whole(folder: Path, make: Callable[[Path], None], journal: Journal) -> None:
    """Make `folder` unless it is there; it appears under its name only when it is complete."""
    if folder.exists():
        return
    unfinished = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    with journal.timed(folder.name):
        make(unfinished)
    unfinished.rename(folder)


def _need(folder: Path, stage: str) -> None:
    if not folder.exists():
        raise ValueError(f"{folder} is missing: run --stage {stage} first")


def _adapters(output: Path, journal: Journal, seed: int, device: str, *, workers: int, progress: Progress) -> None:
    """Train the adapters that are missing, `workers` at a time."""
    missing = [name for name in ADAPTER_IDS if not (output / "adapters" / name).exists()]
    done = len(ADAPTER_IDS) - len(missing)
    if not missing:
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        running: dict[Future[float], str] = {
            pool.submit(_one_adapter, name, output, seed, device): name for name in missing
        }
        finished = as_completed(running)
        for _ in progress.track("adapters", len(ADAPTER_IDS), done):
            future = next(finished)
            seconds = future.result()
            journal.add(f"adapters/{running[future]}", seconds)
            progress.note(f"adapter {running[future]}: {seconds:.0f} s")
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _one_adapter(adapter_id: str, output: Path, seed: int, device: str) -> float:
    """Train one adapter in a process of its own and return the seconds it took."""
    torch.set_num_threads(1)
    begun = time.monotonic()
    folder = output / "adapters" / adapter_id
    unfinished = folder.with_name(f".{adapter_id}.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    adapters.train(adapter_id, output / "base", unfinished, seed=seed, device=device, progress=Progress(quiet=True))
    unfinished.rename(folder)
    return time.monotonic() - begun
