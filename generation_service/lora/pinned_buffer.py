"""Adapters in host memory, in the form in which the device takes them: no conversion is left for an upload."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from generation_service.lora.weights import AdapterWeights, LoraPair, all_finite
from infra.contract.errors import CheckpointError


@dataclass(frozen=True)
class HostForm:
    """The dtype of the bank; `pinned`: page-locked memory, from which a GPU copies by itself.

    CUDA rounds page-locked blocks up to a power of two: an adapter may take up to twice its bytes.
    """

    dtype: torch.dtype
    pinned: bool = False

    def __call__(self, weights: AdapterWeights) -> AdapterWeights:
        """Return a copy of `weights` in one block of memory: a [rank, in] and b^T [rank, out] of every module, dense.

        Raises CheckpointError for values that are not finite in `dtype`.
        """
        block = torch.empty(
            sum(pair.a.numel() + pair.b.numel() for pair in weights.modules.values()),
            dtype=self.dtype,
            pin_memory=self.pinned,
        )
        modules: dict[str, LoraPair] = {}
        start = 0
        for path, pair in weights.modules.items():
            middle, stop = start + pair.a.numel(), start + pair.a.numel() + pair.b.numel()
            a = block[start:middle].view(pair.a.shape).copy_(pair.a)
            b = block[middle:stop].view(pair.b.t().shape).copy_(pair.b.t())
            modules[path] = LoraPair(a, b.t())
            start = stop
        if not all_finite(block):
            raise CheckpointError(f"{self._first_bad(modules)}: values of the adapter are not finite in {self.dtype}")
        return AdapterWeights(weights.rank, modules, weights.revision)

    @staticmethod
    def _first_bad(modules: dict[str, LoraPair]) -> str:
        return next(path for path, pair in modules.items() if not (pair.a.isfinite().all() and pair.b.isfinite().all()))
