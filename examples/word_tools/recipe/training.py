"""Train one adapter: LoRA by PEFT in the upper layers, until a validation set is answered or the steps run out."""

from __future__ import annotations

import json
import math
import random
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from examples.word_tools import BASE_MODEL
from examples.word_tools.dataset import rows
from examples.word_tools.recipe.batches import Encoded, Encoder, answer_loss, batches, collate, hits
from examples.word_tools.tasks import TASKS

ATTENTION = ("k_proj", "o_proj", "q_proj", "v_proj")
ALL_LINEAR = (*ATTENTION, "down_proj", "gate_proj", "up_proj")
#: The lower third stays as it is: it runs without gradients, and the adapters are smaller.
LAYERS = tuple(range(10, 30))
TRAIN_ROWS, VALIDATION_ROWS, BATCH = 1000, 48, 16
RATE, WARMUP, DECAY = 2e-3, 10, 20
#: The rate stays at its peak until the validation set is answered to `GOOD`, or `LAST_PEAK` steps are done; then it
#: falls to zero in `DECAY` steps.
FIRST_CHECK, CHECK_EVERY, GOOD, LAST_PEAK = 20, 15, 0.95, 140
LATER_STEPS, LATER_RATE, ROUNDS = 70, 1e-3, 2
"""An adapter below `GOOD` after a round gets another one, up to `ROUNDS`: the rate falls from its peak at once."""
RECORD = "training.json"


@dataclass(frozen=True)
class Shape:
    """Rank, alpha, scaling rule and target modules of one adapter."""

    rank: int
    alpha: int
    targets: tuple[str, ...]
    rslora: bool = False

    @property
    def scaling(self) -> float:
        """The factor of B A."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


_BY_FAMILY = {
    "numbers": Shape(6, 12, ALL_LINEAR),
    "dates": Shape(8, 16, ATTENTION),
    "records": Shape(8, 16, ATTENTION),
    "sql": Shape(4, 8, ALL_LINEAR),
}
_OTHER = {"norwegian_dates": Shape(4, 4, ATTENTION, rslora=True), "event_records": Shape(6, 12, ATTENTION)}


@dataclass(frozen=True)
class Trained:
    """What training one adapter took, over all rounds, and its share of exact validation answers at each check."""

    seed: int
    rounds: int
    steps: int
    seconds: float
    loss: float
    validation: tuple[float, ...]

    @property
    def is_done(self) -> bool:
        """Whether there is no further round."""
        return self.rounds >= ROUNDS or self.validation[-1] >= GOOD


@dataclass(frozen=True)
class Schedule:
    """Learning rates and checks of one round: `rate` stays at its peak until `peak_until`, then falls in `decay`."""

    peak_rate: float
    peak_until: int
    decay: int

    def rate(self, step: int) -> float:
        """Return the rate of a step: linear warm-up, constant, linear fall to zero."""
        return self.peak_rate * min(1.0, (step + 1) / WARMUP, 1 - (step - self.peak_until) / self.decay)

    def checks_after(self, step: int) -> bool:
        """Whether the validation rows are answered after this many steps, to end the peak."""
        return FIRST_CHECK <= step < self.peak_until and (step - FIRST_CHECK) % CHECK_EVERY == 0


@dataclass(frozen=True)
class Lessons:
    """Encoded rows to train on and to validate with, and the ids that all prompts begin with."""

    prefix: tuple[int, ...]
    training: list[Encoded]
    validation: list[Encoded]


def shape_of(task_id: str) -> Shape:
    """Return the shape of a task's adapter: its family's, with a few exceptions for variety."""
    return _OTHER.get(task_id, _BY_FAMILY[TASKS[task_id].family])


def load_base(folder: Path) -> Any:
    """Load the frozen base model in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).requires_grad_(False)


def read_record(folder: Path) -> Trained | None:
    """Return the training record of an adapter; None if there is no such adapter."""
    file = folder / RECORD
    if not file.exists():
        return None
    record = json.loads(file.read_text(encoding="utf-8"))
    return Trained(**{**record, "validation": tuple(record["validation"])})


def train(task_id: str, base: Path, folder: Path, seed: int) -> Trained:
    """Train the next round of a task's adapter, and write its PEFT folder, in float16, with its training record.

    The first round starts a new adapter; a later one continues with the files in `folder`, and words the questions
    anew.
    """
    started = time.monotonic()
    before = read_record(folder)
    number = before.rounds if before else 0
    torch.manual_seed(seed + sum(task_id.encode()))
    encoder, model = Encoder(base), load_base(base)
    adapter = PeftModel.from_pretrained(model, folder, is_trainable=True) if before else None
    adapter = adapter or add_adapter(model, shape_of(task_id))
    lessons = Lessons(
        encoder.prefix,
        [encoder.encode(row) for row in rows(task_id, "train", TRAIN_ROWS, seed + number)],
        [encoder.encode(row) for row in rows(task_id, "validation", VALIDATION_ROWS, seed)],
    )
    schedule = Schedule(LATER_RATE, 0, LATER_STEPS) if before else Schedule(RATE, LAST_PEAK, DECAY)
    rng = random.Random(f"{seed}/{task_id}/batches" + (f"/{number}" if number else ""))
    steps, loss, scores = _fit(model, lessons, schedule, rng)
    seconds = round(time.monotonic() - started, 1)
    trained = Trained(
        seed=seed,
        rounds=number + 1,
        steps=steps + (before.steps if before else 0),
        seconds=seconds + (before.seconds if before else 0),
        loss=round(loss, 4),
        validation=(*(before.validation if before else ()), *(round(score, 4) for score in scores)),
    )
    save(adapter, folder)
    (folder / RECORD).write_text(json.dumps(asdict(trained), indent=2) + "\n", encoding="utf-8")
    return trained


def add_adapter(model: Any, shape: Shape) -> PeftModel:
    """Add a new adapter of this shape to the model."""
    return get_peft_model(
        model,
        LoraConfig(
            r=shape.rank,
            lora_alpha=shape.alpha,
            use_rslora=shape.rslora,
            target_modules=list(shape.targets),
            layers_to_transform=list(LAYERS),
            task_type="CAUSAL_LM",
        ),
    )


def accuracy(model: Any, prefix: tuple[int, ...], encoded: list[Encoded], size: int = 30) -> float:
    """Return the share of rows that greedy decoding answers exactly."""
    parts = [encoded[start : start + size] for start in range(0, len(encoded), size)]
    return sum(sum(hits(model, prefix, collate(part))) for part in parts) / len(encoded)


def _fit(model: Any, lessons: Lessons, schedule: Schedule, rng: random.Random) -> tuple[int, float, list[float]]:
    """Train the parameters that have gradients; return the steps, the mean loss of the last ten, and all checks."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=schedule.peak_rate, weight_decay=0.0)
    source = batches(lessons.training, BATCH, rng)
    losses: list[float] = []
    scores: list[float] = []
    while (step := len(losses)) < schedule.peak_until + schedule.decay:
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate(step)
        loss = answer_loss(model, lessons.prefix, next(source))
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        losses.append(loss.item())
        if schedule.checks_after(step + 1):
            scores.append(accuracy(model, lessons.prefix, lessons.validation))
            if scores[-1] >= GOOD:
                schedule = replace(schedule, peak_until=step + 1)
    scores.append(accuracy(model, lessons.prefix, lessons.validation))
    return len(losses), sum(losses[-10:]) / len(losses[-10:]), scores


def save(adapter: PeftModel, folder: Path) -> None:
    """Write the PEFT folder in float16, with a sorted configuration that names the public base model."""
    adapter.half()
    adapter.peft_config["default"].base_model_name_or_path = BASE_MODEL
    adapter.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    config = folder / "adapter_config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings["target_modules"] = sorted(settings["target_modules"])
    settings["auto_mapping"] = None
    config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for path in folder.iterdir():
        path.chmod(0o644)
