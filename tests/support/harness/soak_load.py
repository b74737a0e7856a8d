"""Random requests of every kind, valid and invalid, each with the outcomes that it may have."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from infra.contract.composition import Base, Composition, Fusion, FusionMethod, Mixture, WeightedAdapter
from infra.contract.errors import (
    BaseModelMismatchError,
    CancelledError,
    CapacityError,
    CheckpointError,
    DeadlineError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from infra.contract.generation import Decoding, Generation
from infra.contract.prompt import Prompt
from tests.support.checkpoints.qwen2_vl import TinyShape, write_qwen2_vl
from tests.support.harness.generation_stack import ModelFixture, tiny_adapter
from tests.support.harness.images import png_part

RANKS = {"a0": 2, "a1": 4, "a2": 8, "a3": 4, "a4": 3, "a5": 4, "a6": 6, "a7": 4}
BANK_RANKS = 40
MAX_ADAPTERS = 4
WHOLE_BANK = "whole"
"""An adapter whose rank is the bank's, on one module alone. No planned request names it."""
WHOLE_BANK_MODULE = "model.language_model.layers.0.mlp.down_proj"
SHAPE = TinyShape(32, 1, 2, 1, 32, vision_width=16, vision_depth=1)

BAD_ADAPTERS: dict[str, type[Exception]] = {
    "unknown": NotFoundError,
    "wide": CapacityError,
    "foreign": BaseModelMismatchError,
    "half": CheckpointError,
    "stray": CheckpointError,
    "empty": CheckpointError,
}
"""Adapters that no request can use, and the error that it gets."""

Cancel = Literal["at once", "after a token", "later"]


@dataclass(frozen=True)
class Planned:
    """A request before it is made: `shares` of adapter and weight, and the types of its possible outcomes."""

    prompt: Prompt
    kind: Literal["base", "mixture"] | FusionMethod
    shares: tuple[tuple[str, float], ...]
    decoding: Decoding
    ends: frozenset[type] = field(default=frozenset({Generation}))
    cancel: Cancel | None = None
    patience_s: float | None = None

    @property
    def composition(self) -> Composition:
        """The composition. Raises InvalidArgumentError for an invalid weight."""
        adapters = tuple(WeightedAdapter(name, weight) for name, weight in self.shares)
        match self.kind:
            case "base":
                return Base()
            case "mixture":
                return Mixture(adapters)
            case _:
                return Fusion(adapters, self.kind)


def write_soak_fixture(folder: Path) -> ModelFixture:
    """Write a base model of one layer, adapters of several ranks, two of them on the vision tower, and broken ones."""
    roots = folder / "adapters"
    for seed, (name, rank) in enumerate(RANKS.items()):
        tiny_adapter(SHAPE, seed, rank, vision=name in ("a3", "a6")).write(roots / name)
    tiny_adapter(SHAPE, 1, BANK_RANKS + 1).write(roots / "wide")
    write_whole_bank_adapter(roots / WHOLE_BANK)
    tiny_adapter(SHAPE, 2).write(roots / "stray")
    stray = tiny_adapter(SHAPE, 2)
    key = next(iter(stray.tensors))
    stray.tensors[key.replace("layers.0", "layers.7")] = stray.tensors.pop(key)
    stray.write(roots / "stray")
    tiny_adapter(SHAPE, 3, base_model_name_or_path="Qwen/Qwen2-VL-7B").write(roots / "foreign")
    shutil.copytree(roots / "a0", roots / "half")
    weights = roots / "half" / "adapter_model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    (roots / "empty").mkdir()
    (roots / "empty" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    return ModelFixture(write_qwen2_vl(folder / "base", SHAPE), roots, SHAPE, tuple(RANKS))


def write_whole_bank_adapter(folder: Path) -> None:
    """Write the adapter that leaves no room for any other in the bank."""
    adapter = tiny_adapter(SHAPE, 9, BANK_RANKS, target_modules=["down_proj"])
    adapter.tensors = {key: tensor for key, tensor in adapter.tensors.items() if "down_proj" in key}
    adapter.write(folder)


def planned_requests(count: int, seed: int) -> Iterator[Planned]:
    """Yield `count` random requests."""
    draw = random.Random(seed)
    images = [png_part(width, height) for width, height in ((40, 60), (60, 30), (90, 90))]
    for _ in range(count):
        kind = draw.choice(["base", "mixture", "mixture", *FusionMethod])
        names = draw.sample(list(RANKS), draw.randint(1, MAX_ADAPTERS))
        ends: set[type] = {Generation}
        if kind == FusionMethod.LINEAR:
            if draw.random() < 0.7:
                names = draw.sample([name for name, rank in RANKS.items() if rank == 4], min(len(names), 3))
            elif len({RANKS[name] for name in names}) > 1:
                ends = {FailedPreconditionError}
        shares = [(name, round(draw.uniform(0.1, 1.0), 2)) for name in names] if kind != "base" else []
        text = draw.choice(["Go back.", "What is on the screen?", "Scroll down, then go back. " * draw.randint(1, 6)])
        if kind not in ("base", FusionMethod.LINEAR) and draw.random() < 0.2:
            place = draw.randrange(len(shares))
            bad = draw.choice([*BAD_ADAPTERS, "NaN", "negative", "too many"])
            if bad in BAD_ADAPTERS:
                shares[place], ends = (bad, 0.5), {BAD_ADAPTERS[bad]}
            elif bad == "too many":
                shares, ends = [(name, 0.2) for name in list(RANKS)[: MAX_ADAPTERS + 1]], {InvalidArgumentError}
            else:
                weight = float("nan") if bad == "NaN" else -0.1
                shares[place], ends = (shares[place][0], weight), {InvalidArgumentError}
        elif ends == {Generation} and draw.random() < 0.03:
            text, ends = "word " * 400, {InvalidArgumentError}
        cancel: Cancel | None = None
        if draw.random() < 0.15:
            cancel = draw.choice(["at once", "after a token", "later"])
            ends.add(CancelledError)
        patience = None
        if draw.random() < 0.1:
            patience = draw.uniform(0.0, 0.5)
            ends.add(DeadlineError)
        yield Planned(
            prompt=Prompt.of(text, draw.sample(images, draw.randint(1, 2)) if draw.random() < 0.15 else []),
            kind=kind,
            shares=tuple(shares),
            decoding=Decoding(
                max_new_tokens=draw.randint(1, 12),
                temperature=draw.choice([0.0, 0.0, 0.9]),
                seed=draw.choice([None, 7]),
                stop=draw.choice([(), (), ("e",)]),
            ),
            ends=frozenset(ends),
            cancel=cancel,
            patience_s=patience,
        )
