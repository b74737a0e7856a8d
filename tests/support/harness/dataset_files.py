"""Write small datasets of random screens for tests."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.harness.images import picture, png

ACTIONS = ("Open App: Gmail", 'Click on button with the text "Send"', "Check status: successful")


def write_episodes(folder: Path, episodes: int = 2, steps: int = 2) -> Path:
    """Write `train.jsonl` and its screens below `folder`; return the file."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for episode in range(episodes):
        images = [f"images/{episode}_{step}.png" for step in range(steps)]
        for step, name in enumerate(images):
            (folder / name).write_bytes(png(picture(56, 84, seed=10 * episode + step)))
        query = "<image>\n" * steps + f"Send letter {episode}."
        response = "\n".join(ACTIONS[step % len(ACTIONS)] for step in range(steps))
        rows.append({"images": images, "query": query, "response": response, "episode_id": f"{episode:06d}"})
    file = folder / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file
