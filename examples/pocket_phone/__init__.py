"""Pocket phone: a synthetic phone with 14 apps, so small that a LoRA retrieval system trains and runs on two CPU cores.

`apps` holds every convention as data, `screens` and `glyphs` draw, `episodes` plays a task on a screen after another,
`dataset` writes it all to disk, and `recipe` trains the checkpoints that stand in `checkpoints/`.
"""

from pathlib import Path

CHECKPOINTS = Path(__file__).parent / "checkpoints"
BASE_MODEL = "pocket-phone/qwen2-vl-tiny"
EMBEDDER = "pocket-phone/jina-v4-tiny"
SEED = 1
