"""Measure the checkpoints on held-out episodes: answers of adapters alone and in mixtures, and retrieval.

An answer counts if greedy decoding gives exactly the right action. One forward pass over prompt and answer shows it:
decoding is right exactly if every answer token is the most likely one after the right ones before it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize
from transformers import Qwen2VLForConditionalGeneration

from examples.pocket_phone.episodes import Episode, generate
from examples.pocket_phone.prompts import Example, sequence_example, step_examples
from examples.pocket_phone.recipe.batches import Encoded, Features, answer_logits, collate, encode
from examples.pocket_phone.recipe.embedder import Embedder

BATCH = 48
EXAMPLES_PER_ADAPTER = 20
"""Training prompts averaged into an adapter's vector, as in the LoraRetriever paper."""


@dataclass(frozen=True)
class Adapter:
    """The deltas of a PEFT folder: scaling * B A of each module, in float32."""

    deltas: Mapping[str, Tensor]


def load_adapter(folder: Path) -> Adapter:
    """Read an adapter's deltas from its files."""
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    root = math.sqrt(settings["r"]) if settings["use_rslora"] else settings["r"]
    tensors = load_file(folder / "adapter_model.safetensors")
    deltas = {}
    for name, first in tensors.items():
        if name.endswith(".lora_A.weight"):
            second = tensors[name.replace(".lora_A.", ".lora_B.")]
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            deltas[module] = settings["lora_alpha"] / root * (second.float() @ first.float())
    return Adapter(deltas)


@contextmanager
def composed(model: Qwen2VLForConditionalGeneration, parts: Sequence[tuple[Adapter, float]]) -> Iterator[None]:
    """Add the weighted sum of the adapters' deltas to the base model within the block."""
    original: dict[str, Tensor] = {}
    try:
        for adapter, weight in parts:
            for module, delta in adapter.deltas.items():
                parameter = model.get_submodule(module).weight
                original.setdefault(module, parameter.data.clone())
                parameter.data += weight * delta.to(parameter.device)
        yield
    finally:
        for module, value in original.items():
            model.get_submodule(module).weight.data.copy_(value)


@dataclass(frozen=True)
class Bench:
    """A dataset's held-out prompts, encoded: single steps, and whole episodes with their number of steps."""

    steps: list[Encoded]
    sequences: list[Encoded]
    examples: list[Example]


def bench(adapter_id: str, episodes: int, seed: int) -> Bench:
    """Return the first `episodes` test episodes of a dataset as prompts."""
    chosen: list[Episode] = generate(adapter_id, "test", episodes, seed)
    examples = [example for episode in chosen for example in step_examples(episode)]
    sequences = [encode(sequence_example(episode)) for episode in chosen]
    return Bench([encode(example) for example in examples], sequences, examples)


@torch.no_grad()
def exact(model: Qwen2VLForConditionalGeneration, rows: Sequence[Encoded], features: Features) -> float:
    """Return the share of rows that greedy decoding answers exactly."""
    features.add([screen for row in rows for screen in row.screens])
    right = 0
    ordered = sorted(rows, key=lambda row: len(row.ids))
    for start in range(0, len(ordered), BATCH):
        part = ordered[start : start + BATCH]
        logits, targets = answer_logits(model, collate(model, part, features))
        hits = torch.split(logits.argmax(-1) == targets, [len(row.ids) - row.prompt_length for row in part])
        right += sum(bool(hit.all()) for hit in hits)
    return right / len(rows)


@torch.no_grad()
def adapter_vectors(embedder: Embedder, adapter_ids: Sequence[str], seed: int) -> Tensor:
    """Return [adapters, dimension]: each the normalised mean of its first 20 training prompts' vectors."""
    vectors = []
    for adapter_id in adapter_ids:
        episodes = generate(adapter_id, "train", EXAMPLES_PER_ADAPTER, seed)
        examples = [example for episode in episodes for example in step_examples(episode)][:EXAMPLES_PER_ADAPTER]
        vectors.append(embedder.query(examples)[0].mean(0))
    return normalize(torch.stack(vectors), dim=-1)


@torch.no_grad()
def similarities(embedder: Embedder, vectors: Tensor, examples: Sequence[Example]) -> Tensor:
    """Return the cosines [examples, adapters]."""
    parts = [embedder.query(examples[start : start + BATCH])[0] for start in range(0, len(examples), BATCH)]
    return torch.cat(parts) @ vectors.T


@dataclass(frozen=True)
class RetrievalQuality:
    """Retrieval of the true adapter: share at rank 1, within 3, and its mean softmax weight among the first 3."""

    at_1: float
    at_3: float
    home_weight: dict[float, float]


def retrieval_quality(scores: Sequence[Tensor], temperatures: Sequence[float]) -> RetrievalQuality:
    """Evaluate scores: one tensor [examples, adapters] per adapter; in the n-th, the n-th adapter is the true one."""
    ranks: list[Tensor] = []
    weights: dict[float, list[Tensor]] = {temperature: [] for temperature in temperatures}
    for number, score in enumerate(scores):
        ranks.append((score > score[:, number : number + 1]).sum(1))
        values, order = score.topk(3, dim=1)
        for temperature in temperatures:
            share = torch.softmax(values / temperature, dim=1)
            weights[temperature].append((share * (order == number)).sum(1))
    rank = torch.cat(ranks)
    home = {temperature: torch.cat(parts).mean().item() for temperature, parts in weights.items()}
    return RetrievalQuality((rank == 0).float().mean().item(), (rank < 3).float().mean().item(), home)
