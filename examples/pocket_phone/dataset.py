"""Write the world to disk: `train.jsonl`, `test.jsonl` and `images/` per dataset, and one `world.json`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from examples.pocket_phone import SEED
from examples.pocket_phone.apps import ADAPTER_IDS, APPS, CATEGORIES, apps_of
from examples.pocket_phone.episodes import Episode, Split, generate

TRAIN, TEST = 40, 20
SPLITS: tuple[Split, ...] = ("train", "test")


def write_world(
    output: Path,
    train: int = TRAIN,
    test: int = TEST,
    seed: int = SEED,
    *,
    adapter_ids: Iterable[str] = ADAPTER_IDS,
    on_dataset: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write `train` and `test` episodes of every dataset below `output` and return the path of `world.json`.

    The same arguments write the same bytes. `on_dataset` is called with each dataset's id when it is complete.
    """
    entries = []
    for adapter_id in adapter_ids:
        folder = output / adapter_id
        (folder / "images").mkdir(parents=True, exist_ok=True)
        for split, count in zip(SPLITS, (train, test), strict=True):
            rows = [_write_episode(folder, episode) for episode in generate(adapter_id, split, count, seed)]
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        entries.append(_entry(adapter_id))
        on_dataset(adapter_id)
    world = output / "world.json"
    world.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
    return world


def _write_episode(folder: Path, episode: Episode) -> dict[str, object]:
    """Write the episode's screens and return its row. Image paths are relative to the dataset's folder."""
    images = []
    for number, step in enumerate(episode.steps):
        name = f"images/{episode.episode_id}_{number:02d}.png"
        step.screen.render().save(folder / name, compress_level=1)
        images.append(name)
    return {
        "images": images,
        "query": "<image>\n" * len(images) + episode.instruction,
        "response": "\n".join(episode.actions),
        "episode_id": episode.episode_id,
    }


def _entry(adapter_id: str) -> dict[str, str]:
    """Describe one dataset and its adapter.

    Paths are relative: data to `world.json`, checkpoints to this package's `checkpoints` folder.
    """
    if adapter_id in APPS:
        app = APPS[adapter_id]
        kind, display_name = "app", app.display_name
        description = f"Tasks in {app.display_name}, an app for {CATEGORIES[app.category].display_name.lower()}"
    else:
        kind, display_name = "category", CATEGORIES[adapter_id].display_name
        description = "Tasks in " + ", ".join(app.display_name for app in apps_of(adapter_id))
    return {
        "adapter_id": adapter_id,
        "kind": kind,
        "display_name": display_name,
        "description": description,
        "train": f"{adapter_id}/train.jsonl",
        "test": f"{adapter_id}/test.jsonl",
        "checkpoint": f"adapters/{adapter_id}",
    }
