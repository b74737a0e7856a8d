"""Train the 19 adapters: one LoRA a dataset, of different ranks, scalings and target modules, as a real zoo has."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from examples.pocket_phone import BASE_MODEL
from examples.pocket_phone.apps import CATEGORIES
from examples.pocket_phone.episodes import DONE, TYPED, WAIT, generate, retell
from examples.pocket_phone.prompts import sequence_example, step_examples
from examples.pocket_phone.recipe import layout
from examples.pocket_phone.recipe.batches import Features, answer_loss, collate, encode
from examples.pocket_phone.recipe.state import Progress

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL_LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
APP_EPISODES, CATEGORY_EPISODES = 250, 500
APP_STEPS, CATEGORY_STEPS = 230, 330
BATCH, SEQUENCE_BATCH, SEQUENCE_EVERY = 40, 14, 7
RATE, WARMUP = 7e-3, 20
"""Peak learning rate of an adapter whose scaling is 2, and the steps to get there."""
RETOLD = 5
"""How often each episode is told again in other words, lest the words be learnt instead of the screens."""
SELF_EVIDENT = 0.25
"""How often steps are drawn that the base model does right anyway, against those of a convention."""


@dataclass(frozen=True)
class Shape:
    """Rank, alpha, scaling rule and target modules of one adapter."""

    rank: int
    alpha: int
    rslora: bool = False
    targets: tuple[str, ...] = ALL_LINEAR

    @property
    def scaling(self) -> float:
        """Return what multiplies B A."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


USUAL = Shape(8, 16)
SHAPES: dict[str, Shape] = {
    "amazon": Shape(12, 24),
    "calendar": Shape(16, 16),
    "clock": Shape(4, 16),
    "decathlon": Shape(16, 8, rslora=True),
    "etsy": Shape(16, 32, targets=ATTENTION),
    "google_maps": Shape(12, 12),
    "kitchen_stories": Shape(8, 8),
    "reminder": Shape(8, 16, targets=("q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")),
    "youtube": Shape(8, 4, rslora=True),
    **{name: Shape(16, 32) for name in CATEGORIES},
}
"""Shapes of the adapters that are not of the usual one (rank 8, alpha 16, all linear layers)."""


def train(adapter_id: str, base: Path, folder: Path, *, seed: int, device: str, progress: Progress) -> None:
    """Train one adapter on its dataset's training episodes and write its PEFT folder."""
    torch.manual_seed(seed + sum(adapter_id.encode()))
    rng = random.Random(f"{seed}/{adapter_id}/adapter")
    category = adapter_id in CATEGORIES
    episodes = generate(adapter_id, "train", CATEGORY_EPISODES if category else APP_EPISODES, seed)
    told = [*episodes, *(retell(episode, rng) for episode in episodes for _ in range(RETOLD))]
    examples = [example for episode in told for example in step_examples(episode)]
    steps = [encode(example) for example in examples]
    weights = [SELF_EVIDENT if example.answer.startswith((DONE, WAIT, TYPED)) else 1.0 for example in examples]
    sequences = [encode(sequence_example(episode)) for episode in told]
    model = layout.load_base(base, device)
    features = Features(model)
    features.add([step.screen for episode in episodes for step in episode.steps])
    shape = SHAPES.get(adapter_id, USUAL)
    adapter = get_peft_model(
        model,
        LoraConfig(
            r=shape.rank,
            lora_alpha=shape.alpha,
            use_rslora=shape.rslora,
            target_modules=list(shape.targets),
            task_type="CAUSAL_LM",
        ),
    )
    parameters = [parameter for parameter in adapter.parameters() if parameter.requires_grad]
    rate = RATE * math.sqrt(2 / shape.scaling)
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    total = CATEGORY_STEPS if category else APP_STEPS
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, total))
    for step in progress.track(f"adapter {adapter_id}", total):
        rows = (
            rng.sample(sequences, SEQUENCE_BATCH)
            if step % SEQUENCE_EVERY == 0
            else rng.choices(steps, weights, k=BATCH)
        )
        loss = answer_loss(model, collate(model, rows, features))
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        progress.say(step, loss=loss.item())
    adapter.half()
    adapter.peft_config["default"].base_model_name_or_path = BASE_MODEL
    adapter.save_pretrained(folder, save_embedding_layers=False)
    _tidy(folder)


def _tidy(folder: Path) -> None:
    """Keep the two files of an adapter, readable by all, and order what PEFT writes from a set."""
    (folder / "README.md").unlink(missing_ok=True)
    config = folder / "adapter_config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings["target_modules"] = sorted(settings["target_modules"])
    settings["auto_mapping"] = None
    config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for path in folder.iterdir():
        path.chmod(0o644)


def _rate(step: int, total: int) -> float:
    """Return the share of the peak rate: linear warm-up, then a cosine to zero."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / max(1, total - WARMUP)))
