"""Pocket phone: a synthetic phone with 14 apps, small enough to train a LoRA retrieval system on two CPU cores.

`apps` defines every convention as data, `screens` and `glyphs` draw, `episodes` plays a task screen by screen,
`dataset` writes everything to disk, and `recipe` trains the checkpoints in `checkpoints/`.
"""

from pathlib import Path

CHECKPOINTS = Path(__file__).parent / "checkpoints"
BASE_MODEL = "pocket-phone/qwen2-vl-tiny"
EMBEDDER = "pocket-phone/jina-v4-tiny"
SEED = 1
