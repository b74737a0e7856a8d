"""A tiny base model with adapters in its bank and prompts in its slots, decoded eagerly and over static inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from generation_service.execution.inputs import DecodeRow, Prefill
from generation_service.execution.kv_cache import CacheShape, SlotKVCache
from generation_service.execution.runner import Runner
from generation_service.execution.static_decode import StaticDecode
from generation_service.lora.bank import AdapterBank
from generation_service.lora.kernels.capturable_ops import CapturableOps
from generation_service.lora.ranks import RankRange
from generation_service.lora.weights import AdapterWeights, LoraPair, Shapes
from generation_service.models.base import LoadOptions
from generation_service.models.registry import load_base_model
from infra.contract.prompt import Prompt
from tests.support.checkpoints.qwen2_vl import TinyShape, write_qwen2_vl

PROMPTS = ("one", "a second prompt", "three", "and the fourth of them")
RANKS = (4, 7, 16)
STEPS: tuple[tuple[Mapping[int, float], ...], ...] = (
    ({0: 1.0}, {0: 1.0}, {0: 1.0}, {0: 1.0}),
    ({0: 1.0}, {1: 0.5, 2: 0.5}, {}, {2: 1.0}),
    ({}, {}, {1: 0.3, 0: 0.7}, {2: 0.2}),
    ({2: 1.0}, {1: 0.0, 2: 0.25}, {0: 1.0}, {1: 2.0}),
)
"""The compositions of each step, adapter number -> weight. A graph is captured with the first step."""


def language_adapter(targets: Shapes, rank: int, seed: int, only: str = "") -> AdapterWeights:
    """Return a random adapter of the language model's layers whose path contains `only`."""
    generator = torch.Generator().manual_seed(seed)
    return AdapterWeights.of(
        {
            path: LoraPair(
                torch.randn(rank, inputs, generator=generator) / inputs**0.5,
                torch.randn(outputs, rank, generator=generator) / rank,
            )
            for path, (inputs, outputs) in targets.items()
            if path.startswith("model.language_model.") and only in path
        }
    )


class DecodeFixture:
    """Adapters of RANKS in a bank, PROMPTS in the first slots; `eager` runs steps without a graph."""

    def __init__(self, folder: Path, device: str, dtype: torch.dtype) -> None:
        write_qwen2_vl(folder, TinyShape())
        self.model = load_base_model(folder, LoadOptions(torch.device(device), dtype))
        about = self.model.description
        self.bank = AdapterBank(about.targets, 96, dtype, device, by_image=about.by_image)
        shape = CacheShape(about.layers, len(PROMPTS), about.kv_heads, 300, about.head_dim)
        self.cache = SlotKVCache(shape, dtype, torch.device(device))
        self.eager = Runner(self.model, self.bank, self.cache, graphs=False)
        self.ranges = [self._write(rank, seed) for seed, rank in enumerate(RANKS)]
        self._lengths = [self._prefill(slot, text) for slot, text in enumerate(PROMPTS)]

    def static(self, kernels: CapturableOps) -> StaticDecode:
        """Return static decode steps over the same bank and cache."""
        return StaticDecode(self.model, self.bank, self.cache, kernels)

    def rows(self, step: int, compositions: Sequence[Mapping[int, float]]) -> list[DecodeRow]:
        """Return the rows of step number `step`, one per slot."""
        return [
            DecodeRow(slot, 20 + 7 * slot + step, self._lengths[slot] + step, 0, self._routed(composition))
            for slot, composition in enumerate(compositions)
        ]

    def decode_eagerly(self, rows: Sequence[DecodeRow]) -> Tensor:
        """Return the logits [N, vocab] of an eager step."""
        return self.eager.decode(rows)

    def _routed(self, composition: Mapping[int, float]) -> dict[RankRange, float]:
        return {self.ranges[number]: weight for number, weight in composition.items()}

    def _write(self, rank: int, seed: int) -> RankRange:
        owned = self.bank.acquire(rank)
        self.bank.write(owned, language_adapter(self.model.description.targets, rank, seed))
        return owned

    def _prefill(self, slot: int, text: str) -> int:
        prompt = self.model.encode(Prompt.of(text), [])
        self.eager.prefill(Prefill(slot, prompt, {}), prompt.length)
        return prompt.length
