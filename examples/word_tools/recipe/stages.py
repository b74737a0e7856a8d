"""The recipe from end to end: every adapter that is missing, then the measurements and the cards."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import torch
from transformers.utils import logging

from examples.pocket_phone.recipe.state import Progress
from examples.word_tools.recipe import card, measure, training
from examples.word_tools.recipe.training import Trained
from examples.word_tools.tasks import TASKS


def train(base: Path, output: Path, workers: int, seed: int) -> None:
    """Train the adapters that `output`/adapters lacks, then measure all and write the cards into `output`.

    An adapter's folder is written when a round is complete, so an interrupted run resumes with the rounds that are
    missing.
    Raises ValueError for less than one worker or a base model that is missing.
    """
    if workers < 1:
        raise ValueError(f"--workers must be at least 1, got {workers}")
    if not (base / "config.json").exists():
        raise ValueError(f"{base} is missing: run `python -m examples.word_tools fetch` with this folder as its output")
    progress, adapters, measurements = Progress(), output / "adapters", output / "measurements.json"
    adapters.mkdir(parents=True, exist_ok=True)
    for _ in range(training.ROUNDS):
        unfinished = [task_id for task_id in TASKS if _needs_round(adapters / task_id)]
        if unfinished:
            measurements.unlink(missing_ok=True)
            _one_round(unfinished, base, adapters, seed, workers=workers, progress=progress)
    logging.disable_progress_bar()
    for task_id in measure.measure(base, adapters, measurements, seed):
        progress.note(f"measured {task_id}")
    card.write(adapters, measurements, output / "MODEL_CARD.md")


def _needs_round(folder: Path) -> bool:
    """Return whether an adapter is missing, or not good enough after fewer rounds than allowed."""
    trained = training.read_record(folder)
    return trained is None or not trained.is_done


def _one_round(
    task_ids: Sequence[str], base: Path, adapters: Path, seed: int, *, workers: int, progress: Progress
) -> None:
    """Train a round of these adapters, `workers` at a time, with one thread each."""
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_prepare_worker)
    try:
        running: dict[Future[Trained], str] = {
            pool.submit(_one_adapter, task_id, base, adapters, seed): task_id for task_id in task_ids
        }
        finished = as_completed(running)
        for _ in progress.track("adapters", len(task_ids)):
            future = next(finished)
            trained = future.result()
            progress.note(
                f"{running[future]}: {trained.validation[-1]:.1%} of the validation rows after {trained.steps} steps, "
                f"{trained.seconds:.0f} s"
            )
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _prepare_worker() -> None:
    """Ignore SIGINT, since the parent terminates its workers, and use one thread."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    logging.disable_progress_bar()


def _one_adapter(task_id: str, base: Path, adapters: Path, seed: int) -> Trained:
    """Train a round of one adapter in a worker process. Its folder is replaced only when the round is complete."""
    folder, unfinished = adapters / task_id, adapters / f".{task_id}.new"
    shutil.rmtree(unfinished, ignore_errors=True)
    if folder.exists():
        shutil.copytree(folder, unfinished)
    trained = training.train(task_id, base, unfinished, seed)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    return trained
