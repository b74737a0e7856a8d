"""Train the 19 adapters: one LoRA per dataset, with different ranks, scalings and target modules, as in practice."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import Qwen2VLForConditionalGeneration

from examples.pocket_phone import BASE_MODEL
from examples.pocket_phone.apps import CATEGORIES
from examples.pocket_phone.episodes import DONE, TYPED, WAIT, generate, retell
from examples.pocket_phone.prompts import sequence_example, step_examples
from examples.pocket_phone.recipe import layout
from examples.pocket_phone.recipe.batches import Encoded, Features, answer_loss, collate, encode
from examples.pocket_phone.recipe.evaluate import exact
from examples.pocket_phone.recipe.state import Progress
from examples.pocket_phone.screens import Screen

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL_LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
APP_EPISODES, CATEGORY_EPISODES = 250, 500
APP_STEPS, CATEGORY_STEPS = 230, 330
BATCH, SEQUENCE_BATCH, SEQUENCE_EVERY = 40, 14, 7
LATER_STEPS, LATER_RATE, ROUNDS, GOOD, GOOD_CATEGORY = 150, 4e-3, 2, 0.9, 0.75
"""An app's adapter below `GOOD` on fresh episodes, or a category's below `GOOD_CATEGORY`, gets another round of
`LATER_STEPS`, up to `ROUNDS`."""
VALIDATION, VALIDATION_START = 40, 8000
RATE, WARMUP = 7e-3, 20
"""Peak learning rate of an adapter whose scaling is 2, and the warm-up steps."""
RETOLD = 5
"""Paraphrases per episode, so that adapters learn the screens rather than the wording."""
SELF_EVIDENT = 0.25
"""Sampling weight of steps that the base model gets right anyway, relative to steps with a convention."""


@dataclass(frozen=True)
class Shape:
    """Rank, alpha, scaling rule and target modules of one adapter."""

    rank: int
    alpha: int
    rslora: bool = False
    targets: tuple[str, ...] = ALL_LINEAR

    @property
    def scaling(self) -> float:
        """The factor of B A."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@dataclass(frozen=True)
class Task:
    """One round of training one adapter; rounds count from 0."""

    adapter_id: str
    round: int

    @property
    def steps(self) -> int:
        """Training steps of the round."""
        if self.round:
            return LATER_STEPS
        return CATEGORY_STEPS if self.adapter_id in CATEGORIES else APP_STEPS


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
"""Shapes of the adapters that differ from the usual one (rank 8, alpha 16, all linear layers)."""


def train(task: Task, base: Path, folder: Path, *, seed: int, device: str, progress: Progress) -> float:
    """Train one round of one adapter, write its PEFT folder and return its share of right answers.

    The first round starts a new adapter; a later one resumes from the files in `folder`, with new episodes.
    """
    torch.manual_seed(seed + sum(task.adapter_id.encode()))
    rng = random.Random(f"{seed}/{task.adapter_id}/adapter" + (f"/{task.round}" if task.round else ""))
    model = layout.load_base(base, device)
    features = Features(model)
    lessons = _lessons(task, seed, rng)
    features.add(lessons.screens)
    shape = SHAPES.get(task.adapter_id, USUAL)
    adapter = _adapter(model, shape) if task.round == 0 else PeftModel.from_pretrained(model, folder, is_trainable=True)
    parameters = [parameter for parameter in adapter.parameters() if parameter.requires_grad]
    rate = (RATE if task.round == 0 else LATER_RATE) * math.sqrt(2 / shape.scaling)
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, task.steps))
    for step in progress.track(f"adapter {task.adapter_id}", task.steps):
        loss = answer_loss(model, collate(model, lessons.draw(step, rng), features))
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        progress.say(step, loss=loss.item())
    score = _validate(model, task.adapter_id, seed, features)
    adapter.half()
    adapter.peft_config["default"].base_model_name_or_path = BASE_MODEL
    adapter.save_pretrained(folder, save_embedding_layers=False)
    _tidy(folder)
    return score


def _adapter(model: Qwen2VLForConditionalGeneration, shape: Shape) -> PeftModel:
    """Add a new adapter of this shape to the model."""
    return get_peft_model(
        model,
        LoraConfig(
            r=shape.rank,
            lora_alpha=shape.alpha,
            use_rslora=shape.rslora,
            target_modules=list(shape.targets),
            task_type="CAUSAL_LM",
        ),
    )


@dataclass(frozen=True)
class Lessons:
    """The training data of one round: steps with sampling weights, and whole episodes."""

    steps: list[Encoded]
    weights: list[float]
    sequences: list[Encoded]

    @property
    def screens(self) -> list[Screen]:
        """Screens of all steps."""
        return [screen for row in self.steps for screen in row.screens]

    def draw(self, step: int, rng: random.Random) -> list[Encoded]:
        """Return the batch of one training step."""
        if step % SEQUENCE_EVERY == 0:
            return rng.sample(self.sequences, SEQUENCE_BATCH)
        return rng.choices(self.steps, self.weights, k=BATCH)


def _lessons(task: Task, seed: int, rng: random.Random) -> Lessons:
    count = CATEGORY_EPISODES if task.adapter_id in CATEGORIES else APP_EPISODES
    episodes = generate(task.adapter_id, "train", count, seed, start=task.round * count)
    paraphrased = [*episodes, *(retell(episode, rng) for episode in episodes for _ in range(RETOLD))]
    examples = [example for episode in paraphrased for example in step_examples(episode)]
    weights = [SELF_EVIDENT if example.answer.startswith((DONE, WAIT, TYPED)) else 1.0 for example in examples]
    sequences = [encode(sequence_example(episode)) for episode in paraphrased]
    return Lessons([encode(example) for example in examples], weights, sequences)


def _validate(model: Qwen2VLForConditionalGeneration, adapter_id: str, seed: int, features: Features) -> float:
    """Return the share of steps answered right in training-split episodes that no round uses."""
    episodes = generate(adapter_id, "train", VALIDATION, seed, start=VALIDATION_START)
    return exact(model, [encode(example) for episode in episodes for example in step_examples(episode)], features)


def _tidy(folder: Path) -> None:
    """Keep the two files of an adapter, make them world-readable, and sort what PEFT writes from a set."""
    (folder / "README.md").unlink(missing_ok=True)
    config = folder / "adapter_config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings["target_modules"] = sorted(settings["target_modules"])
    settings["auto_mapping"] = None
    config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for path in folder.iterdir():
        path.chmod(0o644)


def _rate(step: int, total: int) -> float:
    """Return the fraction of the peak rate: linear warm-up, then a cosine to zero."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / max(1, total - WARMUP)))
