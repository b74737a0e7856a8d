"""Random banks and batches with adverse loads, and the float64 reference for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from generation_service.lora.bank import AdapterBank
from generation_service.lora.kernels.reference import Term, lora_forward
from generation_service.lora.ranks import RankRange
from generation_service.lora.weights import AdapterWeights, LoraPair

SHAPES = {"q": (24, 20), "down": (16, 24)}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""Largest error by dtype, relative to the largest magnitude of the result."""


@dataclass(frozen=True)
class TrainedLora:
    """An adapter as trained: (a, b) by module, with the scaling kept apart."""

    rank: int
    scaling: float
    factors: dict[str, tuple[Tensor, Tensor]]

    @property
    def weights(self) -> AdapterWeights:
        """The same adapter with its scaling folded into b."""
        return AdapterWeights.of({path: LoraPair(a, b * self.scaling) for path, (a, b) in self.factors.items()})


def trained(rank: int, alpha: float, use_rslora: bool, paths: Sequence[str], generator: torch.Generator) -> TrainedLora:
    """Return a random adapter of `rank` on `paths`, in float64."""
    factors = {}
    for path in paths:
        inputs, outputs = SHAPES[path]
        a = torch.randn(rank, inputs, generator=generator, dtype=torch.float64) / inputs**0.5
        b = torch.randn(outputs, rank, generator=generator, dtype=torch.float64) / rank**0.5
        factors[path] = (a, b)
    return TrainedLora(rank, alpha / (rank**0.5 if use_rslora else rank), factors)


class LoraLayers:
    """A bank with `loras` on two linear layers; rows are given as lora number -> weight."""

    def __init__(self, loras: Sequence[TrainedLora], dtype: torch.dtype = torch.float32, spare: int = 3) -> None:
        torch.manual_seed(7)
        self.dtype = dtype
        self.model = nn.ModuleDict({path: nn.Linear(*shape) for path, shape in SHAPES.items()})
        self.model.to(dtype).requires_grad_(False)
        self.loras = list(loras)
        self.bank = AdapterBank(SHAPES, sum(lora.rank for lora in loras) + spare + 8, dtype, "cpu")
        gap = self.bank.acquire(spare)
        self.ranges = [self.hold(lora.weights) for lora in loras]
        self.bank.release(gap)
        self.base = {path: module.weight for path, module in self.model.items()}
        self.bank.install(self.model)

    def hold(self, weights: AdapterWeights) -> RankRange:
        """Write `weights` into the bank."""
        owned = self.bank.acquire(weights.rank)
        self.bank.write(owned, weights)
        return owned

    def forward(self, path: str, x: Tensor, rows: Sequence[dict[int, float]]) -> Tensor:
        """Return the fast path's output for x [N, T, in]."""
        routed = [{self.ranges[number]: weight for number, weight in row.items()} for row in rows]
        with torch.inference_mode(), self.bank.routing.step(routed):
            out: Tensor = self.model[path](x)
            return out

    def truth(self, path: str, x: Tensor, rows: Sequence[dict[int, float]]) -> Tensor:
        """Return the output of the float64 loop."""
        layer = self.model[path]
        assert isinstance(layer, nn.Linear)
        terms = [
            [
                Term(*self.loras[number].factors[path], self.loras[number].scaling, weight)
                for number, weight in row.items()
                if path in self.loras[number].factors
            ]
            for row in rows
        ]
        return lora_forward(x, layer.weight, layer.bias, terms)


def assert_close(actual: Tensor, truth: Tensor, dtype: torch.dtype) -> None:
    """Fail unless every value is within the tolerance of `dtype`, relative to the largest reference magnitude."""
    error = (actual.double() - truth).abs().max() / truth.abs().max()
    assert error <= TOLERANCE[dtype], f"relative error {error:.2e} in {dtype}"
