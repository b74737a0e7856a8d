"""Draw the rows of a task, and write the datasets: `train.jsonl` and `test.jsonl` per task, and one `world.json`."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from examples.word_tools import SEED
from examples.word_tools.tasks import TASKS, Row

Split = Literal["train", "validation", "test"]
TRAIN, TEST = 40, 40
#: Of ten inputs, chosen by their hash, those of each split. An input is in the same split whatever its words and seed.
_SHARES: dict[Split, range] = {"test": range(2), "validation": range(2, 3), "train": range(3, 10)}
_DRAWS_PER_ROW = 200


def rows(task_id: str, split: Split, count: int, seed: int = SEED) -> list[Row]:
    """Return at most `count` rows of a split with different inputs: fewer if the task has no more.

    The same arguments return the same rows, and a smaller count the first of them.
    """
    rng = random.Random(f"{seed}/{task_id}/{split}")
    drawn: dict[str, Row] = {}
    for _ in range(count * _DRAWS_PER_ROW):
        if len(drawn) == count:
            break
        row = TASKS[task_id].draw(rng)
        if row.key not in drawn and _bucket(task_id, row.key) in _SHARES[split]:
            drawn[row.key] = row
    return list(drawn.values())


def write_world(
    output: Path,
    train: int = TRAIN,
    test: int = TEST,
    seed: int = SEED,
    *,
    task_ids: Iterable[str] = tuple(TASKS),
    on_dataset: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write `train` and `test` rows of every dataset below `output` and return the path of `world.json`.

    The same arguments write the same bytes. `on_dataset` is called with each dataset's id when it is complete.
    """
    entries = []
    for task_id in task_ids:
        folder = output / task_id
        folder.mkdir(parents=True, exist_ok=True)
        counts: dict[Split, int] = {"train": train, "test": test}
        for split, count in counts.items():
            lines = [_line(f"{split}-{number}", row) for number, row in enumerate(rows(task_id, split, count, seed))]
            (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        entries.append(_entry(task_id))
        on_dataset(task_id)
    world = output / "world.json"
    world.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
    return world


def _bucket(task_id: str, key: str) -> int:
    # Not by task: a number, date or query is held out of every adapter of its family, or of none.
    family = TASKS[task_id].family
    return hashlib.sha256(f"{family}/{key}".encode()).digest()[0] % 10


def _line(episode_id: str, row: Row) -> str:
    return json.dumps({"query": row.query, "response": row.response, "episode_id": episode_id}) + "\n"


def _entry(task_id: str) -> dict[str, str]:
    """Describe one dataset and its adapter, in the form of the phone world's `world.json`."""
    task = TASKS[task_id]
    return {
        "adapter_id": task_id,
        "kind": task.family,
        "display_name": task.display_name,
        "description": task.description,
        "train": f"{task_id}/train.jsonl",
        "test": f"{task_id}/test.jsonl",
        "checkpoint": f"adapters/{task_id}",
    }
