"""The recipe from end to end: base, adapters, embedder, card. Each stage is skipped when its result is complete."""

from __future__ import annotations

import shutil
import signal
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from transformers.utils import logging

from examples.pocket_phone.apps import ADAPTER_IDS, CATEGORIES
from examples.pocket_phone.recipe import adapters, base, card, jina
from examples.pocket_phone.recipe.adapters import Task
from examples.pocket_phone.recipe.state import Journal, Progress, State

STATE = ".state"
"""Folder below the output with the state that resumes an interrupted run. It can be deleted after the last stage."""


def train(output: Path, stage: str, device: str, workers: int, seed: int) -> None:
    """Run `stage` or all stages into `output`.

    Raises ValueError for a seed that differs from the one `output` was started with, less than one worker, a missing
    device, or a stage whose predecessor is missing.
    """
    if workers < 1:
        raise ValueError(f"--workers must be at least 1, got {workers}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this machine has no CUDA device that torch can use; leave the option out")
    _quieten()
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
        card.write(output, seed, device, journal, progress)


def _whole(folder: Path, make: Callable[[Path], None], journal: Journal) -> None:
    """Create `folder` unless it exists. It gets its name only when it is complete."""
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
    """Train the adapters that are missing or not good enough, `workers` at a time, round by round."""
    for number in range(adapters.ROUNDS):
        tasks = [Task(name, number) for name in ADAPTER_IDS if _needs_round(name, journal.rounds.get(name, []), number)]
        if tasks:
            _one_round(tasks, output, journal, seed, device, workers=workers, progress=progress)


def _needs_round(name: str, scores: list[float], number: int) -> bool:
    """Return whether an adapter with these scores, one per round, needs round `number`."""
    good = adapters.GOOD_CATEGORY if name in CATEGORIES else adapters.GOOD
    return len(scores) == number and (number == 0 or scores[-1] < good)


def _one_round(
    tasks: list[Task], output: Path, journal: Journal, seed: int, device: str, *, workers: int, progress: Progress
) -> None:
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_prepare_worker)
    try:
        running: dict[Future[Trained], Task] = {
            pool.submit(_one_adapter, task, output, seed, device): task for task in tasks
        }
        finished = as_completed(running)
        for _ in progress.track(f"adapters, round {tasks[0].round + 1}", len(tasks)):
            future = next(finished)
            task, trained = running[future], future.result()
            journal.add_round(task.adapter_id, trained.score, trained.seconds)
            progress.note(f"adapter {task.adapter_id}: {trained.score:.1%} of fresh steps, {trained.seconds:.0f} s")
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _prepare_worker() -> None:
    """Ignore SIGINT, since the parent terminates its workers, and use one thread."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _quieten()


def _quieten() -> None:
    """Use one thread per process, and suppress the libraries' own progress bars and warnings."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message="Already found a `peft_config`")
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")


@dataclass(frozen=True)
class Trained:
    """A worker's result of one adapter's round."""

    score: float
    seconds: float


def _one_adapter(task: Task, output: Path, seed: int, device: str) -> Trained:
    """Train one round of one adapter in a worker process. Its folder is replaced only when the round is complete."""
    started = time.monotonic()
    folder = output / "adapters" / task.adapter_id
    unfinished = folder.with_name(f".{task.adapter_id}.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    if task.round:
        shutil.copytree(folder, unfinished)
    score = adapters.train(task, output / "base", unfinished, seed=seed, device=device, progress=Progress(quiet=True))
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    return Trained(score, time.monotonic() - started)
