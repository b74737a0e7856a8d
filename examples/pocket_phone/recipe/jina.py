"""Train the tiny jina-v4 on the world's training examples, contrastively.

The base model learns which texts and screens belong to the same category and, roughly, app. It is then frozen, and
each task adapter learns its own similarity: `retrieval` requests and screens of the same app, `text-matching` requests
of the same intent, `code` a request and the actions that fulfil it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from examples.pocket_phone.apps import APPS, CATEGORIES
from examples.pocket_phone.episodes import Episode, generate
from examples.pocket_phone.prompts import Example, step_examples
from examples.pocket_phone.recipe import embedder as jina
from examples.pocket_phone.recipe.embedder import Embedder
from examples.pocket_phone.recipe.state import Progress, State

EPISODES = 150
BACKBONE_STEPS, RETRIEVAL_STEPS, OTHER_STEPS = 160, 200, 60
BACKBONE_RATE, ADAPTER_RATE = 1.5e-3, 4e-3
PER_APP = 5
TEMPERATURE = 0.12


@dataclass(frozen=True)
class Row:
    """One training prompt and its episode."""

    episode: Episode
    example: Example

    @property
    def app(self) -> int:
        """Index of the app."""
        return list(APPS).index(self.episode.app)

    @property
    def category(self) -> int:
        """Index of the category."""
        return list(CATEGORIES).index(APPS[self.episode.app].category)


def train(folder: Path, state: State, seed: int, device: str, progress: Progress) -> None:
    """Train the embedder and write its checkpoint folder."""
    torch.manual_seed(seed)
    embedder = Embedder().to(device)
    with torch.no_grad():
        embedder.model.language_model.embed_tokens.weight.normal_(0, 0.1)
    rows = {
        app: [
            Row(episode, example)
            for episode in generate(app, "train", EPISODES, seed)
            for example in step_examples(episode)
        ]
        for app in APPS
    }
    backbone = state.load("jina_backbone")
    if backbone is None:
        _train_backbone(embedder, rows, random.Random(f"{seed}/backbone"), progress)
        state.save("jina_backbone", embedder.state_dict())
    else:
        embedder.load_state_dict(backbone)
    embedder.requires_grad_(False)
    embedder.add_tasks()
    embedder.to(device)
    losses: dict[str, tuple[int, Callable[[Sequence[Row]], Tensor]]] = {
        "retrieval": (RETRIEVAL_STEPS, lambda batch: _retrieval_loss(embedder, batch)),
        "text-matching": (OTHER_STEPS, lambda batch: _matching_loss(embedder, batch)),
        "code": (OTHER_STEPS, lambda batch: _code_loss(embedder, batch)),
    }
    for task, (steps, loss) in losses.items():
        embedder.use(task)
        parameters = [
            value for name, value in embedder.named_parameters() if f".{task}." in name and "multi_" not in name
        ]
        for parameter in parameters:
            parameter.requires_grad_(True)
        rng = random.Random(f"{seed}/{task}")
        _optimise(
            parameters, loss, rows, rate=ADAPTER_RATE, steps=steps, rng=rng, progress=progress, title=f"jina: {task}"
        )
    jina.save(folder, embedder)


def _train_backbone(embedder: Embedder, rows: dict[str, list[Row]], rng: random.Random, progress: Progress) -> None:
    def loss(batch: Sequence[Row]) -> Tensor:
        joint, texts, images = embedder.query([row.example for row in batch])
        categories = torch.tensor([row.category for row in batch], device=joint.device)
        apps = torch.tensor([row.app for row in batch], device=joint.device)
        return centroid_loss(texts, categories) + centroid_loss(joint, categories) + 0.5 * centroid_loss(images, apps)

    parameters = [value for name, value in embedder.named_parameters() if "multi_" not in name]
    _optimise(
        parameters,
        loss,
        rows,
        rate=BACKBONE_RATE,
        steps=BACKBONE_STEPS,
        rng=rng,
        progress=progress,
        title="jina: backbone",
    )


def _optimise(
    parameters: list[nn.Parameter],
    loss: Callable[[Sequence[Row]], Tensor],
    rows: dict[str, list[Row]],
    *,
    rate: float,
    steps: int,
    rng: random.Random,
    progress: Progress,
    title: str,
) -> None:
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, steps, pct_start=0.1)
    for step in progress.track(title, steps):
        value = loss([row for app in APPS for row in rng.sample(rows[app], PER_APP)])
        optimiser.zero_grad()
        torch.autograd.backward(value)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        progress.say(step, loss=value.item())


def centroid_loss(vectors: Tensor, labels: Tensor) -> Tensor:
    """Return the cross entropy of classifying each vector by the class means, computed without the vector itself.

    vectors [N, D]; labels [N]. The logits are cosines over a fixed temperature, which is how the catalogue compares.
    """
    classes = torch.unique(labels)
    member = (labels[None] == classes[:, None]).to(vectors.dtype)
    sums = member @ vectors
    own = member.T.bool()
    means = normalize(sums, dim=-1)
    without = normalize((member.T @ sums) - vectors, dim=-1)
    scores = torch.where(own, (vectors * without).sum(-1, keepdim=True), vectors @ means.T)
    return cross_entropy(scores / TEMPERATURE, member.argmax(0))


def _retrieval_loss(embedder: Embedder, batch: Sequence[Row]) -> Tensor:
    joint, _, images = embedder.query([row.example for row in batch])
    apps = torch.tensor([row.app for row in batch], device=joint.device)
    categories = torch.tensor([row.category for row in batch], device=joint.device)
    return centroid_loss(joint, apps) + 0.3 * centroid_loss(images, apps) + 0.3 * centroid_loss(joint, categories)


def _matching_loss(embedder: Embedder, batch: Sequence[Row]) -> Tensor:
    intents = [f"{row.category}/{row.episode.intent}" for row in batch]
    names = sorted(set(intents))
    labels = torch.tensor([names.index(intent) for intent in intents], device=embedder.device)
    return centroid_loss(embedder.text([row.episode.instruction for row in batch]), labels)


def _code_loss(embedder: Embedder, batch: Sequence[Row]) -> Tensor:
    requests = embedder.text([row.episode.instruction for row in batch])
    programs = embedder.text(["\n".join(row.episode.actions) for row in batch], jina.PASSAGE)
    return cross_entropy(requests @ programs.T / TEMPERATURE, torch.arange(len(batch), device=embedder.device))
